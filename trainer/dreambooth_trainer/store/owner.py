"""Whose a folder is: a marker in a job's folder, a manifest in a published model.

A job writes into a folder that carries its marker, and removes from a model what its manifest lists. Everything else
there is somebody else's, and stays.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from pydantic import BaseModel, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.store.folder import JobFolder

SENTINEL = ".dreambooth-job"
MANIFEST = "dreambooth.json"
# Another process creates the marker and then writes its content: a few bytes.
_MARKER_SECONDS = 2.0
_NAMES_SHOWN = 5


class Manifest(BaseModel):
    """What a published model's dreambooth.json says about its files.

    Attributes:
        job: namespace/name of the job that made it.
        files: every file of the model, this one included, relative to it, with slashes.
    """

    model_config = {"alias_generator": to_camel, "populate_by_name": True, "extra": "ignore", "frozen": True}

    job: str
    files: tuple[str, ...]

    @field_validator("files")
    @classmethod
    def _inside(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        # They are deleted by these names.
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
                raise ValueError(f"{name!r} is not a file inside the model's folder")
        return files


def job_id(job: DreamBoothJob) -> str:
    """How a marker and a manifest name a job."""
    return f"{job.metadata.namespace}/{job.metadata.name}"


def named(files: Collection[str]) -> str:
    """Some of many files, for a message."""
    shown = sorted(files)
    more = f" and {len(shown) - _NAMES_SHOWN} more" if len(shown) > _NAMES_SHOWN else ""
    return ", ".join(shown[:_NAMES_SHOWN]) + more


def list_names(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Names of what is directly in a folder, or of a file; empty where there is nothing."""
    fs.invalidate_cache()
    try:
        entries: list[Any] = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    there = {str(entry).rstrip("/") for entry in entries}
    if path.rstrip("/") in there and not fs.isfile(path):
        # A store may list the folder itself, as an empty object.
        there.remove(path.rstrip("/"))
    return sorted(entry.rpartition("/")[2] for entry in there)


def read_sentinel(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """The job that a folder belongs to."""
    content = _read(fs, f"{path}/{SENTINEL}")
    return None if content is None else content.decode(errors="replace").strip()


def read_manifest(fs: fsspec.AbstractFileSystem, path: str) -> Manifest | None:
    """The manifest of a published model; None where there is none that can be read."""
    content = _read(fs, f"{path}/{MANIFEST}")
    try:
        return None if content is None else Manifest.model_validate_json(content)
    except ValidationError:
        return None


def ownership_issues(root: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """What keeps a job from working in a folder. Writes nothing."""
    if root.exists() and not root.is_dir():
        return [ValidationIssue("--out", str(root), "is not a folder", "write another folder")]
    fs, path = fsspec.url_to_fs(str(root))
    owner, names = read_sentinel(fs, path), list_names(fs, path)
    if owner == job_id(job) or not names or _is_half_claimed(owner, names):
        return []
    rule = f"is the folder of job {owner}" if owner else f"holds {named(names)}, and no marker of a job"
    return [ValidationIssue("--out", str(root), rule, "write an empty folder, or one that does not exist")]


def claim(root: Path, job: DreamBoothJob) -> None:
    """Make a folder this job's, before anything else is written there. Of two jobs that try, one gets it.

    Raises:
        UserError: it is another job's, or holds something and has no marker.
    """
    if issues := ownership_issues(root, job):
        raise UserError(issues)
    root.mkdir(parents=True, exist_ok=True)
    marker, content = root / SENTINEL, f"{job_id(job)}\n"
    with contextlib.suppress(FileExistsError), marker.open("x") as file:
        file.write(content)
        return
    deadline = time.monotonic() + _MARKER_SECONDS
    while not marker.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    if _is_half_claimed(marker.read_text(), [p.name for p in root.iterdir()]):
        marker.write_text(content)
    if issues := ownership_issues(root, job):
        raise UserError(issues)


def model_issues(model: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """What keeps a job from replacing the folder that its model is published in: files that it did not make."""
    manifest = read_manifest(*fsspec.url_to_fs(str(model)))
    ours = set(manifest.files) if manifest is not None and manifest.job == job_id(job) else set[str]()
    there = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_symlink() or not p.is_dir()}
    if not (strangers := there - ours):
        return []
    rule = f"holds {named(strangers)}, which this job did not make and would replace"
    return [ValidationIssue("--out", str(model), rule, "move them elsewhere, or write another folder")]


def remote_issues(uri: str, job: DreamBoothJob, files: Collection[str] = ()) -> list[ValidationIssue]:
    """What keeps a job from publishing at a URL.

    Args:
        files: what it is about to write there, as far as that is known.
    """
    fs, root = fsspec.url_to_fs(uri)
    names, manifest = list_names(fs, root), read_manifest(fs, root)
    if manifest is None:
        rule = f"holds {named(names)}, and no model of this job" if names else ""
    elif manifest.job != job_id(job):
        rule = f"holds the model of job {manifest.job}"
    else:
        strangers = [name for name in set(files) - set(manifest.files) if fs.exists(f"{root}/{name}")]
        rule = f"holds {named(strangers)}, which this job did not make and would replace" if strangers else ""
    return (
        [ValidationIssue("spec.output.uri", uri, rule, "write an empty place, or one that does not exist")]
        if rule
        else []
    )


def output_issues(job: DreamBoothJob, folder: JobFolder) -> list[ValidationIssue]:
    """Everything that keeps a job from writing where it is to write. Looks only."""
    issues = ownership_issues(folder.root, job) or model_issues(folder.model, job)
    uri = job.spec.output.uri
    return [*issues, *(remote_issues(uri, job) if uri is not None and is_url(uri) else [])]


def _is_half_claimed(owner: str | None, names: Collection[str]) -> bool:
    # Whoever created the marker died before it wrote to it, and so before anything else.
    return owner == "" and set(names) == {SENTINEL}


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    fs.invalidate_cache()
    try:
        content: Any = fs.cat_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return content
