"""Ownership of folders: a sentinel file in a job's folder, a manifest in a published model.

A job writes only to a folder with its own sentinel, and deletes only files in its own manifest. All other files are
foreign: they are never overwritten or deleted.
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
# Another process may have created the sentinel without having written its content yet.
_SENTINEL_TIMEOUT_SECONDS = 2.0
_MAX_NAMES = 5


class Manifest(BaseModel):
    """The fields of a published model's dreambooth.json that define its owner and its files.

    Attributes:
        job: namespace/name of the job that created the model.
        files: all files of the model including the manifest, relative to its folder, with slashes.
    """

    model_config = {"alias_generator": to_camel, "populate_by_name": True, "extra": "ignore", "frozen": True}

    job: str
    files: tuple[str, ...]

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: tuple[str, ...]) -> tuple[str, ...]:
        # These files may be deleted, so none may be outside the model's folder.
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
                raise ValueError(f"{name!r} is outside the model's folder")
        return files


def job_id(job: DreamBoothJob) -> str:
    """The ID of a job in sentinels and manifests: namespace/name."""
    return f"{job.metadata.namespace}/{job.metadata.name}"


def enumerate_names(files: Collection[str]) -> str:
    """The first names of some files, for a message: "a, b, c, d, e and 7 more"."""
    names = sorted(files)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def foreign_folder(owner: str | None, names: Collection[str]) -> str:
    """The violated rule for a folder that is not empty and does not belong to the job."""
    if owner:
        return f"is the folder of job {owner}"
    return f"contains {enumerate_names(names)}, and is not the folder of a job"


def list_names(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    """Names of the entries of a folder, or the name of a file; empty if nothing exists at `path`."""
    fs.invalidate_cache()
    try:
        entries: list[Any] = fs.ls(path, detail=False)
    except FileNotFoundError:
        return []
    paths = {str(entry).rstrip("/") for entry in entries}
    if path.rstrip("/") in paths and not fs.isfile(path):
        # An object store may list the folder itself as an empty object.
        paths.remove(path.rstrip("/"))
    return sorted(entry.rpartition("/")[2] for entry in paths)


def read_sentinel(fs: fsspec.AbstractFileSystem, path: str) -> str | None:
    """The ID of the job that a folder belongs to; None if there is no sentinel."""
    content = _read(fs, f"{path}/{SENTINEL}")
    return None if content is None else content.decode(errors="replace").strip()


def read_manifest(fs: fsspec.AbstractFileSystem, path: str) -> Manifest | None:
    """The manifest of a published model; None if it is missing or invalid."""
    content = _read(fs, f"{path}/{MANIFEST}")
    try:
        return None if content is None else Manifest.model_validate_json(content)
    except ValidationError:
        return None


def ownership_issues(root: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """Reasons why a job may not use a folder. Read-only."""
    if root.exists() and not root.is_dir():
        return [ValidationIssue("--out", str(root), "is not a folder", "use another path")]
    fs, path = fsspec.url_to_fs(str(root))
    owner, names = read_sentinel(fs, path), list_names(fs, path)
    if owner == job_id(job) or not names or _is_half_claimed(owner, names):
        return []
    remedy = "use an empty folder, or one that does not exist"
    return [ValidationIssue("--out", str(root), foreign_folder(owner, names), remedy)]


def claim(root: Path, job: DreamBoothJob) -> None:
    """Create a folder with the job's sentinel. If several jobs try at the same time, one succeeds.

    Raises:
        UserError: the folder belongs to another job, or is not empty and has no sentinel.
    """
    if issues := ownership_issues(root, job):
        raise UserError(issues)
    root.mkdir(parents=True, exist_ok=True)
    sentinel, content = root / SENTINEL, f"{job_id(job)}\n"
    with contextlib.suppress(FileExistsError), sentinel.open("x") as file:
        file.write(content)
        return
    deadline = time.monotonic() + _SENTINEL_TIMEOUT_SECONDS
    while not sentinel.read_text() and time.monotonic() < deadline:
        time.sleep(0.05)
    if _is_half_claimed(sentinel.read_text(), [p.name for p in root.iterdir()]):
        sentinel.write_text(content)
    if issues := ownership_issues(root, job):
        raise UserError(issues)


def model_issues(model: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """Foreign files in the folder of the job's model, which publishing would replace."""
    manifest = read_manifest(*fsspec.url_to_fs(str(model)))
    owned = set(manifest.files) if manifest is not None and manifest.job == job_id(job) else set[str]()
    existing = {p.relative_to(model).as_posix() for p in model.rglob("*") if p.is_symlink() or not p.is_dir()}
    if not (foreign := existing - owned):
        return []
    remedy = "move them to another folder, or use another --out"
    return [ValidationIssue("--out", str(model), _foreign_files(foreign), remedy)]


def remote_issues(uri: str, job: DreamBoothJob, files: Collection[str] = ()) -> list[ValidationIssue]:
    """Reasons why a job may not publish to a URL.

    Args:
        files: names of the files that will be written, if known.
    """
    fs, root = fsspec.url_to_fs(uri)
    names, manifest = list_names(fs, root), read_manifest(fs, root)
    if manifest is None:
        rule = f"contains {enumerate_names(names)}, and is not a model of this job" if names else ""
    elif manifest.job != job_id(job):
        rule = f"contains the model of job {manifest.job}"
    else:
        foreign = [name for name in set(files) - set(manifest.files) if fs.exists(f"{root}/{name}")]
        rule = _foreign_files(foreign) if foreign else ""
    remedy = "use an empty folder, or one that does not exist"
    return [ValidationIssue("spec.output.uri", uri, rule, remedy)] if rule else []


def output_issues(job: DreamBoothJob, folder: JobFolder) -> list[ValidationIssue]:
    """All reasons why a job may not write to its folder or its output. Read-only."""
    issues = ownership_issues(folder.root, job) or model_issues(folder.model, job)
    uri = job.spec.output.uri
    return [*issues, *(remote_issues(uri, job) if uri is not None and is_url(uri) else [])]


def _foreign_files(names: Collection[str]) -> str:
    return f"contains {enumerate_names(names)}, which this job did not create and would overwrite"


def _is_half_claimed(owner: str | None, names: Collection[str]) -> bool:
    # The process that created the sentinel died before it wrote its content, and before it wrote other files.
    return owner == "" and set(names) == {SENTINEL}


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    fs.invalidate_cache()
    try:
        content: Any = fs.cat_file(path)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
    return content
