"""Options that several commands share."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from dreambooth_api import environment
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.cli.flags import flags, take_overrides
from dreambooth_trainer.cli.process import is_writable, private_folder
from dreambooth_trainer.jobfile.fromphotos import is_photos, job_from_photos
from dreambooth_trainer.jobfile.load import load_job
from dreambooth_trainer.jobfile.overrides import Sets

job_file = click.argument("job_file", metavar="JOB.yaml", type=click.Path(path_type=Path))


@dataclass(frozen=True)
class JobSource:
    """The job that a command is called with: a job file or photos, and overrides.

    Attributes:
        source: a job file, or a folder or URI of photos.
        name: of a job that is made from photos.
    """

    source: str
    sets: Sets
    name: str | None

    def read(self) -> DreamBoothJob:
        """Load the job.

        Raises:
            UserError: with all issues of the file and of the overrides.
            TransientError: the operator started this process, and the file is not the one that it wrote.
        """
        if is_photos(self.source):
            return job_from_photos(self.source, self.sets, self.name)
        job = read_job(Path(self.source), self.sets)
        if self.name is None:
            return job
        rule = "applies to a job that is made from photos"
        raise UserError(ValidationIssue("--name", self.name, rule, "set metadata.name in the job file"))


def job_source(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the argument JOB and all options that change a job. It gets them as `job`, a `JobSource`."""

    @functools.wraps(command)
    def with_job(*, source: str, name: str | None, sets: tuple[str, ...], **parameters: Any) -> None:
        overrides = take_overrides(parameters)
        command(job=JobSource(source, (*overrides, *sets), name), **parameters)

    decorated = click.option(
        "--set",
        "sets",
        multiple=True,
        metavar="KEY=VALUE",
        help="Set any field of spec, for example --set training.randomFlip=true.",
    )(with_job)
    decorated = click.option("--name", help="Name of a job that is made from photos. Defaults to the folder's.")(
        decorated
    )
    # A path also completes file names in shells. Existence is checked with the job, for a better message.
    return click.argument("source", metavar="JOB", type=click.Path())(flags(decorated))


save = click.option(
    "--save", type=click.Path(path_type=Path), help="Also write the job to a file. None is overwritten."
)


def read_job(path: Path, changes: Sets) -> DreamBoothJob:
    """Load a job file with overrides.

    Raises:
        UserError: with all issues of the file and of the overrides.
        TransientError: the operator started this process, and the file is not the one that it wrote.
    """
    sha256 = os.environ.get(environment.JOB_SHA256, "") if is_from_operator(path) else ""
    return load_job(path, changes, sha256=sha256)


def is_from_operator(path: Path) -> bool:
    """Whether a job file is the one that the operator mounts into a pod."""
    return str(path) == environment.JOB_FILE


def store_url(store: str | None) -> tuple[str, str]:
    """URL or absolute path of shared class images, and a line for the user or an empty string.

    The folder is `store`, else DREAMBOOTH_STORE, else in the user's cache folder, or in a temporary one if the cache
    cannot be written to.
    """
    chosen = store or os.environ.get(environment.STORE)
    if chosen:
        return (chosen if is_url(chosen) else str(Path(chosen).resolve())), ""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = cache / "dreambooth" / "store"
    if is_writable(folder):
        return str(folder), ""
    temporary = private_folder() / "store"
    return str(temporary), (
        f"class images are stored in {temporary}, because {cache} is not writable; set {environment.STORE} to keep them"
    )


def check_new_folder(out: Path) -> None:
    """Raise an error if `--out` has something in it."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(ValidationIssue("--out", str(out), "exists, and would be overwritten", "use another folder"))
