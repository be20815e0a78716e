"""Checks the files of a published model against the digests in its manifest."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import fsspec

from dreambooth_api import layout
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.store.owner import MANIFEST, MARKER, is_log
from dreambooth_trainer.store.published import ModelManifest, contents_digest
from dreambooth_trainer.store.removal import list_files

_REMEDY = "do not load it; publish it again, or fetch it again from where it was published"


def verify_model(uri: str) -> tuple[str, list[str]]:
    """Check a published model; returns the digest of its contents, and the names of files that are not in its manifest.

    Args:
        uri: folder or URL of the model, or of its job.

    Raises:
        UserError: there is no model, or with one issue for each file that is missing or has another content.
    """
    fs, root = fsspec.url_to_fs(uri)
    if fs.isfile(f"{root}/{layout.MODEL}/{MANIFEST}"):
        root = f"{root}/{layout.MODEL}"
    if not fs.isfile(f"{root}/{MANIFEST}"):
        rule, remedy = "is not the folder of a published model", "pass the folder or URL that a job published to"
        raise UserError(ValidationIssue("MODEL", uri, rule, remedy))
    content: Any = fs.cat_file(f"{root}/{MANIFEST}")
    manifest = ModelManifest.model_validate_json(content)
    if issues := list(_issues(fs, root, manifest)):
        raise UserError(issues)
    own = {MANIFEST, MARKER, *manifest.files}
    return contents_digest(manifest), [name for name in list_files(fs, root) if name not in own and not is_log(name)]


def _issues(fs: fsspec.AbstractFileSystem, root: str, manifest: ModelManifest) -> Iterator[ValidationIssue]:
    for name, expected in sorted(manifest.files.items()):
        try:
            with fs.open(f"{root}/{name}", "rb") as file:
                stream: Any = file
                found = hashlib.file_digest(stream, "sha256").hexdigest()
        except FileNotFoundError:
            yield ValidationIssue(name, None, "is missing", _REMEDY)
            continue
        if found != expected:
            yield ValidationIssue(name, None, f"has SHA-256 {found}, but {MANIFEST} lists {expected}", _REMEDY)
