"""Deletes the data of a job: images, latents, checkpoints, weights, logs, the report and the published model.

Only files that the job created are deleted, according to the marker of its folder and the manifests of its models
(`owner.py`). Marker and manifest are deleted last, so that an interrupted deletion can be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import fsspec

from dreambooth_api import layout
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import hub_repository, is_url
from dreambooth_trainer.store.hub_output import erase_repository
from dreambooth_trainer.store.owner import (
    MANIFEST,
    MARKER,
    Owner,
    foreign_folder,
    is_log,
    list_names,
    owner_of,
    read_manifest,
    read_marker,
)
from dreambooth_trainer.store.removal import list_files, remove_empty_folder, remove_file, remove_local_tree

# The job creates these folders, after its marker. The last two of them remain after a crash of `atomic_directory`.
_FOLDERS = ("work", layout.VALIDATION, layout.TRACKERS, ".model.draft", ".model.old")
_FILES = (layout.REPORT, "job.yaml")


@dataclass(frozen=True)
class Erased:
    """Result of a deletion at one location.

    Attributes:
        kept: remaining files, which the job did not create.
        owned: whether the location belongs to the job. If not, nothing was deleted.
    """

    url: str
    kept: tuple[str, ...]
    owned: bool = True


def erase_job(job: DreamBoothJob, folder: str) -> Iterator[Erased]:
    """Delete a job's published model and its folder, if they exist.

    A published model of another job is kept: this job failed before it was published. Class images in the shared
    store are kept, because they contain no subject data and other jobs use them.

    Raises:
        UserError: the folder is not empty and does not belong to this job. Nothing is deleted.
    """
    yield from erase_owned(owner_of(job), folder, job.spec.output.uri)


def erase_owned(own: Owner, folder: str, published: str | None) -> Iterator[Erased]:
    """As `erase_job`, for a job of which only the owner and `spec.output.uri` are known."""
    if hub_repository(folder) is not None:
        yield from _erase_published(own, folder)
        return
    fs, path = fsspec.url_to_fs(folder)
    owner, names = read_marker(fs, path), list_names(fs, path)
    if names and not _is_own(owner, own):
        raise UserError(ValidationIssue("--out", folder, foreign_folder(owner, names), "pass the folder of the job"))
    if published is not None and is_url(published) and published != folder:
        yield from _erase_published(own, published)
    if is_url(folder):
        yield from _erase_published(own, folder)
    elif fs.exists(path):
        if owner is not None:
            _erase_folder(fs, path, own)
        kept = tuple(list_files(fs, path))
        if not kept:
            remove_empty_folder(fs, *_split(path))
        yield Erased(folder, kept)


def _is_own(owner: Owner | None, own: Owner) -> bool:
    return owner is not None and owner.is_same(own)


def _erase_published(own: Owner, url: str) -> Iterator[Erased]:
    if hub_repository(url) is not None:
        if erased := erase_repository(own, url):
            yield Erased(url, *erased)
        return
    fs, root = fsspec.url_to_fs(url)
    names = list_names(fs, root)
    if not names:
        return
    if not _is_own(read_marker(fs, root), own):
        yield Erased(url, tuple(names), owned=False)
        return
    _erase_model(fs, root, "", own)
    _erase_logs(fs, root)
    remove_file(fs, root, MARKER)
    kept = tuple(list_files(fs, root))
    if not kept:
        remove_empty_folder(fs, *_split(root))
    yield Erased(url, kept)


def _erase_folder(fs: fsspec.AbstractFileSystem, path: str, own: Owner) -> None:
    _erase_model(fs, path, f"{layout.MODEL}/", own)
    for name in list_names(fs, path):
        # The temporary file of `atomic_write`, if its process died: .<name>.<pid>.draft
        is_temporary = name.endswith(".draft") and any(name.startswith(f".{file}.") for file in (*_FILES, MARKER))
        if name in _FILES or is_temporary:
            remove_file(fs, path, name)
        elif name in _FOLDERS:
            remove_local_tree(path, name)
    _erase_logs(fs, path)
    remove_file(fs, path, MARKER)


def _erase_model(fs: fsspec.AbstractFileSystem, root: str, below: str, own: Owner) -> None:
    """Delete the files in the manifest of a model of this job.

    Args:
        below: folder of the model relative to `root`, with a slash at the end; empty for `root` itself.
    """
    manifest = read_manifest(fs, f"{root}/{below}".rstrip("/"))
    if manifest is None or not manifest.job.is_same(own):
        return
    for name in sorted(manifest.files):
        remove_file(fs, root, below + name)
    folders = {str(parent) for name in manifest.files for parent in _parents(name)}
    for folder in sorted(folders, key=len, reverse=True):
        remove_empty_folder(fs, root, below + folder)
    remove_file(fs, root, below + MANIFEST)
    if below:
        remove_empty_folder(fs, root, below)


def _erase_logs(fs: fsspec.AbstractFileSystem, root: str) -> None:
    for name in list_names(fs, f"{root}/{layout.LOGS}"):
        if is_log(path := f"{layout.LOGS}/{name}"):
            remove_file(fs, root, path)
    remove_empty_folder(fs, root, layout.LOGS)


def _parents(name: str) -> list[str]:
    """The folders above a file, without the root: ["a/b", "a"] for "a/b/c"."""
    parts = name.split("/")[:-1]
    return ["/".join(parts[:count]) for count in range(len(parts), 0, -1)]


def _split(path: str) -> tuple[str, str]:
    """The folder that contains a path, and its name there."""
    parent, _, name = path.rstrip("/").rpartition("/")
    return parent or "/", name
