"""Ownership of folders: a marker in the folder of a job and at its output, a manifest in a published model.

A job writes only to a folder with its own marker, and deletes only files in its own manifest. All other files are
foreign: they are never overwritten or deleted.

A job that was deleted and created again has the same name and another uid. It continues the work of its predecessor,
but does not replace or delete a model that the predecessor published.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import fsspec
from pydantic import BaseModel, ValidationError, field_validator
from pydantic.alias_generators import to_camel

from dreambooth_api import layout
from dreambooth_api.errors import ValidationIssue
from dreambooth_api.job import DreamBoothJob

MARKER = ".dreambooth.json"
MANIFEST = "dreambooth.json"
_MAX_NAMES = 5
MAX_BYTES = 16 * 2**20  # of a marker or a manifest
_LOG_NAME = re.compile(rf"{layout.LOGS}/attempt-[0-9]{{1,9}}\.log")
_EMPTY_REMEDY = "use an empty folder, or one that does not exist"


class Owner(BaseModel):
    """The job that a folder or a model belongs to. It is the content of a marker.

    Attributes:
        uid: of the object on the cluster; empty for a job file on one machine.
    """

    model_config = {"extra": "ignore", "frozen": True}

    namespace: str
    name: str
    uid: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}"

    def has_name_of(self, other: Owner) -> bool:
        """Whether both are the same job, or one was created again under the name of the other."""
        return (self.namespace, self.name) == (other.namespace, other.name)

    def is_same(self, other: Owner) -> bool:
        """Whether both are the same job. A job file without a uid means any job of that name."""
        return self.has_name_of(other) and (self.uid == other.uid or not self.uid or not other.uid)


class Manifest(BaseModel):
    """The fields of a published model's dreambooth.json that define its owner and its files.

    Attributes:
        job: the job that created the model.
        files: SHA-256 of all files of the model except the manifest, by path relative to its folder, with slashes.
    """

    model_config = {"alias_generator": to_camel, "populate_by_name": True, "extra": "ignore", "frozen": True}

    job: Owner
    files: dict[str, str]

    @field_validator("files")
    @classmethod
    def _check_files(cls, files: dict[str, str]) -> dict[str, str]:
        # These files may be deleted, so none may be outside the model's folder.
        for name in files:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or not path.parts or "\\" in name:
                raise ValueError(f"{name!r} is outside the model's folder")
        return files


def owner_of(job: DreamBoothJob) -> Owner:
    """The owner of the folders of a job."""
    return Owner(namespace=job.metadata.namespace, name=job.metadata.name, uid=job.metadata.uid)


def enumerate_names(files: Collection[str]) -> str:
    """The first names of some files, for a message: "a, b, c, d, e and 7 more"."""
    names = sorted(files)
    more = f" and {len(names) - _MAX_NAMES} more" if len(names) > _MAX_NAMES else ""
    return ", ".join(names[:_MAX_NAMES]) + more


def is_log(name: str) -> bool:
    """Whether a path relative to a job's folder is the log of an attempt."""
    return _LOG_NAME.fullmatch(name) is not None


def foreign_folder(owner: Owner | None, names: Collection[str]) -> str:
    """The violated rule for a folder that is not empty and does not belong to the job."""
    if owner:
        return f"is the folder of job {owner}" + (f" with uid {owner.uid}" if owner.uid else "")
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


def read_marker(fs: fsspec.AbstractFileSystem, path: str) -> Owner | None:
    """The job that a folder belongs to; None if its marker is missing or invalid."""
    return parse_marker(_read(fs, f"{path}/{MARKER}"))


def read_manifest(fs: fsspec.AbstractFileSystem, path: str) -> Manifest | None:
    """The manifest of a published model; None if it is missing or invalid."""
    return parse_manifest(_read(fs, f"{path}/{MANIFEST}"))


def parse_marker(content: bytes | None) -> Owner | None:
    """The owner in a marker; None if it is missing or invalid."""
    try:
        return None if content is None else Owner.model_validate_json(content)
    except ValidationError:
        return None


def parse_manifest(content: bytes | None) -> Manifest | None:
    """The manifest in a file; None if it is missing or invalid."""
    try:
        return None if content is None else Manifest.model_validate_json(content)
    except ValidationError:
        return None


def ownership_issues(root: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """Reasons why a job may not use a folder. Read-only."""
    if root.exists() and not root.is_dir():
        return [ValidationIssue("--out", str(root), "is not a folder", "use another path")]
    fs, path = fsspec.url_to_fs(str(root))
    for parent in root.parents:
        # That job's work/ may be deleted as a whole.
        if outer := read_marker(fs, str(parent)):
            rule = f"is inside {parent}, the folder of job {outer}"
            return [ValidationIssue("--out", str(root), rule, "use a folder outside of it")]
    names, owner, own = list_names(fs, path), read_marker(fs, path), owner_of(job)
    if owner is not None and owner.has_name_of(own):
        # Somebody else made a link: the job would write to where it points.
        links = [name for name in (layout.MODEL, layout.LOGS, "work") if (root / name).is_symlink()]
        rule = f"contains {enumerate_names(links)}, a link to another folder"
        return [ValidationIssue("--out", str(root), rule, "remove the link")] if links else []
    if not names or is_half_claimed(root, names):
        return []
    return [ValidationIssue("--out", str(root), foreign_folder(owner, names), _EMPTY_REMEDY)]


def is_half_claimed(root: Path, names: Collection[str]) -> bool:
    """Whether a process created the marker, but has not written its content and other files. It may have died."""
    return set(names) == {MARKER} and (root / MARKER).stat().st_size == 0


def model_issues(model: Path, job: DreamBoothJob) -> list[ValidationIssue]:
    """Files in the folder of the job's model which publishing would replace and which are not the job's."""
    manifest, own = read_manifest(*fsspec.url_to_fs(str(model))), owner_of(job)
    if manifest is not None and not manifest.job.is_same(own):
        remedy = "move or delete it, or use another --out"
        return [ValidationIssue("--out", str(model), _foreign_model(manifest.job, own), remedy)]
    owned = {MANIFEST, *manifest.files} if manifest is not None else set[str]()
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
    place = Place(list_names(fs, root), read_marker(fs, root), read_manifest(fs, root))
    return place_issues(uri, place, owner_of(job), files, lambda name: fs.exists(f"{root}/{name}"))


@dataclass(frozen=True)
class Place:
    """What is at the destination of a model: names of entries, the marker and the manifest."""

    names: Collection[str]
    owner: Owner | None
    manifest: Manifest | None

    @property
    def owned(self) -> set[str]:
        """The files of the published model."""
        return {MANIFEST, *self.manifest.files} if self.manifest is not None else set[str]()


def place_issues(
    uri: str, place: Place, own: Owner, files: Collection[str], exists: Callable[[str], bool]
) -> list[ValidationIssue]:
    """Reasons why a job may not publish to a place, for `remote_issues`."""
    rule, remedy = "", _EMPTY_REMEDY
    if place.names and (place.owner is None or not place.owner.has_name_of(own)):
        rule = foreign_folder(place.owner, place.names)
    elif place.manifest is not None and not place.manifest.job.is_same(own):
        rule, remedy = _foreign_model(place.manifest.job, own), f"delete it, or {_EMPTY_REMEDY}"
    elif foreign := [name for name in set(files) - place.owned if exists(name)]:
        rule = _foreign_files(foreign)
    return [ValidationIssue("spec.output.uri", uri, rule, remedy)] if rule else []


def _foreign_model(owner: Owner, own: Owner) -> str:
    if owner.has_name_of(own):
        return f"contains the model of an earlier job {owner}, with uid {owner.uid}"
    return f"contains the model of job {owner}"


def _foreign_files(names: Collection[str]) -> str:
    return f"contains {enumerate_names(names)}, which this job did not create and would overwrite"


def _read(fs: fsspec.AbstractFileSystem, path: str) -> bytes | None:
    fs.invalidate_cache()
    try:
        info: Any = fs.info(path)
        content: Any = fs.cat_file(path) if info["type"] == "file" and info["size"] <= MAX_BYTES else None
    except (FileNotFoundError, NotADirectoryError):
        return None
    return content
