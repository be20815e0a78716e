"""Removes what a job made: images, latents, checkpoints, weights, pictures and the published copy.

A marker says whose a folder is and a manifest which files make up a model (`owner.py`). What somebody else has put
there stays. The marker and the manifest go last, so that an erasure that was cut short can be run again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.uris import is_url
from dreambooth_trainer.store.owner import MANIFEST, SENTINEL, job_id, list_names, named, read_manifest, read_sentinel

# What `atomic_directory` leaves beside the model after a crash.
_MODEL_LEFTOVERS = (".model.draft", ".model.old")
_FILES = ("report.html", "job.yaml")


@dataclass(frozen=True)
class Erased:
    """What became of one place.

    Attributes:
        ours: whether it was this job's; if not, nothing of it was removed.
        kept: files that the job did not make and that are still there.
    """

    url: str
    kept: tuple[str, ...]
    ours: bool = True


def erase_job(job: DreamBoothJob, folder: str) -> Iterator[Erased]:
    """Remove a job's published copy and its folder. Missing ones are fine.

    A published copy that is not this job's is left as it is, with its files as kept: the job did not get to publish.
    Class images in a shared store stay: they hold nothing of the subject, and other jobs use them.

    Raises:
        UserError: the folder holds something and is not this job's; nothing is removed anywhere.
    """
    fs, path = fsspec.url_to_fs(folder)
    owner, names = read_sentinel(fs, path), list_names(fs, path)
    if names and owner != job_id(job):
        rule = f"is the folder of job {owner}" if owner else f"holds {named(names)}, and no marker of a job"
        raise UserError(ValidationIssue("--out", folder, rule, "write the folder that the job ran in"))
    published = job.spec.output.uri
    if published is not None and is_url(published) and published != folder:
        yield from _erase_published(job, published)
    if not fs.exists(path):
        return
    if owner is not None:
        _erase_folder(fs, path, job)
    kept = tuple(_found(fs, path))
    if not kept:
        _remove_empty(fs, path)
    yield Erased(folder, kept)


def _erase_published(job: DreamBoothJob, url: str) -> Iterator[Erased]:
    fs, root = fsspec.url_to_fs(url)
    names = list_names(fs, root)
    if not names:
        return
    if _erase_model(fs, root, job):
        yield Erased(url, tuple(_found(fs, root)))
    else:
        yield Erased(url, tuple(names), ours=False)


def _erase_folder(fs: fsspec.AbstractFileSystem, path: str, job: DreamBoothJob) -> None:
    _erase_model(fs, f"{path}/model", job)
    for name in list_names(fs, path):
        # A file that was being written when its process died: .<name>.<process>.draft
        is_draft = name.endswith(".draft") and any(name.startswith(f".{file}.") for file in _FILES)
        if name in _FILES or is_draft:
            _remove(fs, f"{path}/{name}")
        elif name == "work" or name in _MODEL_LEFTOVERS:
            with contextlib.suppress(FileNotFoundError):
                fs.rm(f"{path}/{name}", recursive=True)
    _remove(fs, f"{path}/{SENTINEL}")


def _erase_model(fs: fsspec.AbstractFileSystem, root: str, job: DreamBoothJob) -> bool:
    """Remove a model by its manifest; whether there was one of this job."""
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


def _found(fs: fsspec.AbstractFileSystem, path: str) -> list[str]:
    fs.invalidate_cache()
    return sorted(str(file)[len(path) :].lstrip("/") for file in fs.find(path))


def _remove(fs: fsspec.AbstractFileSystem, path: str) -> None:
    with contextlib.suppress(FileNotFoundError):
        fs.rm_file(path)


def _remove_empty(fs: fsspec.AbstractFileSystem, path: str) -> None:
    # An object store has no folders, but a bucket that must stay.
    if not isinstance(fs, LocalFileSystem) and "/" not in path.strip("/"):
        return
    with contextlib.suppress(OSError, NotImplementedError):
        fs.rmdir(path)
