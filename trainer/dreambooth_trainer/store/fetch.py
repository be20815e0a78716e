"""Copies a published model from an object store or the Hub to this machine, and checks it."""

from __future__ import annotations

import hashlib
from pathlib import Path, PurePosixPath

import fsspec
from filelock import FileLock

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.models.files import CONFIG_SUFFIXES
from dreambooth_trainer.store.folder import atomic_directory
from dreambooth_trainer.store.owner import MANIFEST, Manifest, read_manifest
from dreambooth_trainer.store.published import sha256

# Everything that a model consists of. No other formats: they may contain code.
_SUFFIXES = {".safetensors", *CONFIG_SUFFIXES, ".md", ".yaml", ".png", ".html"}


def fetch_published(uri: str, cache: Path) -> Path:
    """The local folder of the model at a URI. A copy in `cache` is used if its manifest is the same.

    Raises:
        UserError: the URI is not a published model, or a file does not match its digest in the manifest.
    """
    fs, root = fsspec.url_to_fs(uri)
    manifest = read_manifest(fs, root)
    if manifest is None:
        rule, remedy = "is not the folder of a published model", "pass the URI that a job published to"
        raise UserError(ValidationIssue("MODEL", uri, rule, remedy))
    content: bytes = fs.cat_file(f"{root}/{MANIFEST}")
    folder = cache / hashlib.sha256(uri.encode() + b"\0" + content).hexdigest()[:32]
    cache.mkdir(parents=True, exist_ok=True)
    # Another process may be copying it, into the same temporary folder.
    with FileLock(cache / f".{folder.name}.lock"):
        if not folder.is_dir():
            with atomic_directory(folder) as copy:
                _copy(fs, root, manifest, copy)
                (copy / MANIFEST).write_bytes(content)
    return folder


def _copy(fs: fsspec.AbstractFileSystem, root: str, manifest: Manifest, folder: Path) -> None:
    for name, expected in sorted(manifest.files.items()):
        if PurePosixPath(name).suffix not in _SUFFIXES:
            continue
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        fs.get_file(f"{root}/{name}", str(target))
        if sha256(target) != expected:
            rule = f"does not match its digest in {MANIFEST}"
            raise UserError(
                ValidationIssue(fs.unstrip_protocol(f"{root}/{name}"), None, rule, "do not load it; publish it again")
            )
