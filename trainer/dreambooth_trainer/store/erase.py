"""Deletes the data of a job: images, latents, checkpoints, weights, the report and the published model.

Only files that the job created are deleted, according to the sentinel of its folder and the manifests of its models
(`owner.py`). Sentinel and manifest are deleted last, so that an interrupted deletion can be repeated.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dreambooth_api import layout
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.store.owner import (
    MANIFEST,
    SENTINEL,
    foreign_folder,
    job_id,
    list_names,
    read_manifest,
    read_sentinel,
)

# Temporary folders of `atomic_directory` that remain after a crash.
_MODEL_TEMPORARIES = (".model.draft", ".model.old")
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
    fs, path = fsspec.url_to_fs(folder)
    owner, names = read_sentinel(fs, path), list_names(fs, path)
    if names and owner != job_id(job):
        raise UserError(ValidationIssue("--out", folder, foreign_folder(owner, names), "pass the folder of the job"))
    published = job.spec.output.uri
    if published is not None and is_url(published) and published != folder:
        yield from _erase_published(job, published)
    if not fs.exists(path):
        return
    if owner is not None:
        _erase_folder(fs, path, job)
    kept = tuple(_list_files(fs, path))
    if not kept:
        _remove_empty(fs, path)
    yield Erased(folder, kept)


def _erase_published(job: DreamBoothJob, url: str) -> Iterator[Erased]:
    fs, root = fsspec.url_to_fs(url)
    names = list_names(fs, root)
    if not names:
        return
    if _erase_model(fs, root, job):
        yield Erased(url, tuple(_list_files(fs, root)))
    else:
        yield Erased(url, tuple(names), owned=False)


def _erase_folder(fs: fsspec.AbstractFileSystem, path: str, job: DreamBoothJob) -> None:
    _erase_model(fs, f"{path}/{layout.MODEL}", job)
    for name in list_names(fs, path):
        # The temporary file of `atomic_write`, if its process died: .<name>.<pid>.draft
        is_temporary = name.endswith(".draft") and any(name.startswith(f".{file}.") for file in _FILES)
        if name in _FILES or is_temporary:
            _remove(fs, f"{path}/{name}")
        elif name == "work" or name in _MODEL_TEMPORARIES:
            with contextlib.suppress(FileNotFoundError):
                fs.rm(f"{path}/{name}", recursive=True)
    _remove(fs, f"{path}/{SENTINEL}")


def _erase_model(fs: fsspec.AbstractFileSystem, root: str, job: DreamBoothJob) -> bool:
    """Delete the files in a model's manifest. Returns False if there is no model of this job."""
    manifest = read_manifest(fs, root)
    if manifest is None or manifest.job != job_id(job):
        return False
    for name in sorted(set(manifest.files) - {MANIFEST}):
        _remove(fs, f"{root}/{name}")
    folders = {name.rpartition("/")[0] for name in manifest.files if "/" in name}
    for folder in sorted(folders, key=len, reverse=True):
        _remove_empty(fs, f"{root}/{folder}")
    _remove(fs, f"{root}/{MANIFEST}")
    _remove_empty(fs, root)
    return True


def _list_files(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    fs.invalidate_cache()
    return sorted(str(file)[len(path) :].lstrip("/") for file in fs.find(path))


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _remove_empty(fs: fsspec.AbstractFileSystem, path: str) -> None:
    # Object stores have no folders, and the bucket must be kept.
    if not isinstance(fs, LocalFileSystem) and "/" not in path.strip("/"):
        return
    with contextlib.suppress(OSError, NotImplementedError):
        fs.rmdir(path)
