"""Claims the folder and the output of a job: creates the markers, before anything else is written there."""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Any, cast

import fsspec

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import hub_repository, is_url
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.hub_output import claim_repository, repository_issues
from dreambooth_trainer.store.owner import (
    MARKER,
    is_half_claimed,
    model_issues,
    owner_of,
    ownership_issues,
    read_marker,
    remote_issues,
)

# Another process may have created the marker without having written its content yet.
_MARKER_TIMEOUT_SECONDS = 2.0


def output_issues(job: DreamBoothJob, folder: JobFolder) -> list[ValidationIssue]:
    """All reasons why a job may not write to its folder or its output. Read-only."""
    issues = ownership_issues(folder.root, job) or model_issues(folder.model, job)
    uri = job.spec.output.uri
    if uri is None or not is_url(uri):
        return issues
    at_output = remote_issues(uri, job) if hub_repository(uri) is None else repository_issues(uri, job)
    return [*issues, *at_output]


def claim_output(job: DreamBoothJob, folder: JobFolder) -> None:
    """Claim the folder of a job, and the URL that its model is published to, if it has one.

    Raises:
        UserError: one of them is not empty and does not belong to the job. Nothing is written in this case.
    """
    if issues := output_issues(job, folder):
        raise UserError(issues)
    claim(folder.root, job)
    uri = job.spec.output.uri
    if uri is not None and hub_repository(uri) is not None:
        claim_repository(uri, job)
    elif uri is not None and is_url(uri):
        claim_url(uri, job)


def claim(root: Path, job: DreamBoothJob) -> None:
    """Create a folder with the job's marker. If several jobs try at the same time, one succeeds.

    Raises:
        UserError: the folder belongs to another job, or is not empty and has no marker.
    """
    if issues := ownership_issues(root, job):
        raise UserError(issues)
    root.mkdir(parents=True, exist_ok=True)
    marker, content = root / MARKER, _content(job)
    with contextlib.suppress(FileExistsError), marker.open("x") as file:
        file.write(content)
        return
    deadline = time.monotonic() + _MARKER_TIMEOUT_SECONDS
    while not marker.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    if is_half_claimed(root, [path.name for path in root.iterdir()]):
        marker.write_text(content)
    if issues := ownership_issues(root, job):
        raise UserError(issues)
    if marker.read_text() != content:  # of a job of the same name that was deleted
        atomic_write(marker, content)


def claim_url(uri: str, job: DreamBoothJob) -> None:
    """Write the job's marker to the URL of its output.

    Raises:
        UserError: the URL is not empty and does not belong to the job.
    """
    fs, root = fsspec.url_to_fs(uri)
    if read_marker(fs, root) == owner_of(job):
        return
    fs.makedirs(root, exist_ok=True)
    try:
        # "xb": if two jobs find the folder empty, only one of them can create the marker.
        with fs.open(f"{root}/{MARKER}", "xb") as file:
            cast("Any", file).write(_content(job).encode())
    except FileExistsError:
        if issues := remote_issues(uri, job):
            raise UserError(issues) from None
        fs.pipe_file(f"{root}/{MARKER}", _content(job).encode())


def _content(job: DreamBoothJob) -> str:
    return owner_of(job).model_dump_json(exclude_defaults=True) + "\n"
