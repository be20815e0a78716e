"""Options that several commands share."""

from __future__ import annotations

import os
from pathlib import Path

import click

from dreambooth_api import environment
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.cli.process import is_writable, private_folder
from dreambooth_trainer.jobfile.load import load_job

job_file = click.argument("job_file", metavar="JOB.yaml", type=click.Path(path_type=Path))
sets = click.option(
    "--set",
    "sets",
    multiple=True,
    metavar="KEY=VALUE",
    help="Override a field of spec, for example --set training.steps=200.",
)


def read_job(path: Path, changes: tuple[str, ...]) -> DreamBoothJob:
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
