"""The layout of a job's folder, and atomic writes of files and directories."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth_api import layout
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.store.file_lock import LockedError, lock_file


@dataclass(frozen=True)
class JobFolder:
    """Paths in the folder of a job: results for users at the top, intermediate data of the phases in work/.

    The folder is on a local disk, or on a volume that all workers mount.

    Attributes:
        stage: name of the model's stage that caches, checkpoints, losses and trained weights are of; empty for the
            first one, whose files have no folder of their own.
    """

    root: Path
    stage: str = ""

    def of_stage(self, stage: str) -> JobFolder:
        """The same folder, for another stage."""
        return replace(self, stage=stage)

    @property
    def model(self) -> Path:
        """The published model: a diffusers folder with model card, sample images and scores."""
        return self.root / layout.MODEL

    @property
    def report(self) -> Path:
        """The report, a self-contained HTML page."""
        return self.root / layout.REPORT

    @property
    def validation(self) -> Path:
        """Images of the model while it trained, and their scores, see `validations.py`."""
        return self.root / layout.VALIDATION

    @property
    def trackers(self) -> Path:
        """What experiment trackers store locally."""
        return self.root / layout.TRACKERS

    @property
    def work(self) -> Path:
        return self.root / "work"

    @property
    def status(self) -> Path:
        """The status of the job, if it runs on this machine (`status_file.py`)."""
        return self.work / "status.json"

    @property
    def lock(self) -> Path:
        """The lock, see `file_lock.py`. It names the process that holds it."""
        return self.work / "lock"

    @property
    def submitted(self) -> Path:
        """The job file that a client started the job with."""
        return self.work / "submitted.yaml"

    @property
    def console(self) -> Path:
        """What the process that a client started has printed."""
        return self.work / "console.log"

    @property
    def _stage_work(self) -> Path:
        return self.work / self.stage

    @property
    def prepared(self) -> Path:
        """The images of the subjects as square RGB PNG files, named <index of the subject>-<number>.png."""
        return self.work / "prepared"

    @property
    def photos(self) -> Path:
        """The images of the subjects before the crop for training, as PNG files of the same names."""
        return self.work / "photos"

    def prepared_of(self, subject: int) -> list[Path]:
        """The prepared images of the subject with this index, in the order of its files."""
        return sorted(self.prepared.glob(f"{subject}-*.png"))

    def photos_of(self, subject: int) -> list[Path]:
        """The photos of the subject with this index, in the order of its files."""
        return sorted(self.photos.glob(f"{subject}-*.png"))

    @property
    def latents(self) -> Path:
        """Cached latents and text conditioning, in safetensors."""
        return self._stage_work / "latents.safetensors"

    @property
    def initial_adapter(self) -> Path:
        """The adapter that training starts from, if a HyperNetwork predicts it. With PEFT's names, in safetensors."""
        return self._stage_work / "initial-adapter.safetensors"

    @property
    def checkpoints(self) -> Path:
        return self._stage_work / "checkpoints"

    @property
    def trained(self) -> Path:
        """The fine-tuned model before it is published, a diffusers folder. Later stages are in folders in it."""
        return self.work / "trained" / self.stage

    @property
    def losses(self) -> Path:
        """One JSON object per step: step, loss, instance_loss, prior_loss, learning_rate, world_size."""
        return self._stage_work / "losses.jsonl"

    @property
    def evaluation_images(self) -> Path:
        """Images generated for the evaluation."""
        return self.work / "evaluation-images"

    @property
    def scores(self) -> Path:
        return self.work / "scores.json"

    @property
    def run(self) -> Path:
        """Plan and phase keys of the last run, see `run_record.py`."""
        return self.work / "run.json"

    def completion_record(self, phase: TrainerPhase) -> Path:
        """Result of a finished phase, with the key of its inputs."""
        return self.work / "phases" / f"{phase}.json"

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Lock the folder until the block ends. The operating system releases the lock if the process dies.

        Raises:
            UserError: another process holds the lock.
        """
        self.work.mkdir(parents=True, exist_ok=True)
        try:
            with lock_file(self.lock) as lock:
                lock.name_holder(os.getpid())
                yield
        except LockedError as error:
            rule = f"is in use by process {error.holder or 'of somebody else'}"
            remedy = "wait until that process ends, or use another folder"
            raise UserError(ValidationIssue("--out", str(self.root), rule, remedy)) from None


def atomic_write(path: Path, content: bytes | str) -> None:
    """Write a file atomically: readers see the old or the new content, never a part of it.

    Raises:
        OSError: always with the path, which a failed write alone does not have (for example if the disk is full).
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.draft")
    try:
        # In a shared folder, somebody else may have made a link of that name.
        temporary.unlink(missing_ok=True)
        with temporary.open("xb") as file:
            file.write(content.encode() if isinstance(content, str) else content)
        temporary.replace(path)
    except OSError as error:
        raise type(error)(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_directory(path: Path) -> Iterator[Path]:
    """Yield a temporary directory that replaces `path` if the block ends without an error.

    All users can read its files. The old directory is deleted once the new one is complete. After a crash between the
    two renames, the next call restores the old directory.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = path.with_name(f".{path.name}.draft"), path.with_name(f".{path.name}.old")
    if old.exists() and not path.exists():
        old.rename(path)
    shutil.rmtree(temporary, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                # safetensors (0.8) writes files that only their owner can read.
                file.chmod(0o644)
        if path.exists():
            path.rename(old)
        temporary.rename(path)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def link_or_copy(source: str, target: str) -> None:
    """Copy a file. Weights are linked, so that they use no more space: they are only replaced as a whole."""
    if source.endswith(".safetensors"):
        # Not all file systems have hard links.
        with contextlib.suppress(OSError):
            os.link(source, target)
            return
    shutil.copyfile(source, target)
