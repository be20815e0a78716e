"""A job's folder, and writes that are seen whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue


@dataclass(frozen=True)
class JobFolder:
    """Where everything of one job lies: what users look at on top, what the phases need under work/.

    The folder may be a laptop's disk or a volume that all workers mount.
    """

    root: Path

    @property
    def model(self) -> Path:
        """The published model: what `diffusers` loads, with card, pictures and scores beside the weights."""
        return self.root / "model"

    @property
    def report(self) -> Path:
        """One HTML page that needs nothing else."""
        return self.root / "report.html"

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def prepared(self) -> Path:
        """The subject's images, square RGB PNG."""
        return self.work / "prepared"

    @property
    def latents(self) -> Path:
        """Cached latents and text conditioning, safetensors."""
        return self.work / "latents.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self.work / "checkpoints"

    @property
    def trained(self) -> Path:
        """The fine-tuned model as a diffusers folder, before it is published."""
        return self.work / "trained"

    @property
    def losses(self) -> Path:
        """One JSON object a step: step, loss, instance_loss, prior_loss, learning_rate."""
        return self.work / "losses.jsonl"

    @property
    def evaluation_images(self) -> Path:
        """Images that the evaluation generated."""
        return self.work / "evaluation-images"

    @property
    def scores(self) -> Path:
        return self.work / "scores.json"

    @property
    def run(self) -> Path:
        """Plan and phase keys of the last run."""
        return self.work / "run.json"

    def completion_record(self, phase: str) -> Path:
        """What a finished phase leaves behind."""
        return self.work / "phases" / f"{phase}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the folder for one run.

        Raises:
            UserError: another run holds it. The lock goes with its process, however that ends.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        with (self.work / "lock").open("a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.seek(0)
                raise UserError(
                    ValidationIssue(
                        "--out", str(self.root), f"is in use by process {file.read().strip()}", "wait, or write another"
                    )
                ) from None
            file.truncate(0)
            file.write(f"{os.getpid()}\n")
            file.flush()
            yield


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file that readers see complete or not at all.

    Raises:
        OSError: with the path, also of a full disk, which the system tells without.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)
        draft.replace(path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        draft.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Give a draft folder to fill; it takes the place of `path` when the block ends well.

    The old folder goes only when the new one is complete. A crash between the two renames leaves the old one
    under a name that the next call puts back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    draft, old = path.with_name(f".{path.name}.draft"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(draft, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    draft.mkdir()
    try:
        yield draft
        if path.exists():
            path.rename(old)
        draft.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
