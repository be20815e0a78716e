"""Selects the images and captions of a folder on any fsspec file system. Reads no file."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, NamedTuple

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import (
    METADATA,
    NOTES,
    Concept,
    caption_files,
    concept_of,
    is_candidate,
    is_visible,
)

MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 2 * 2**30
MAX_FILES = 1000
FIELD = "spec.subject.images.uri"
_COPY = (
    "replace the link by a copy of the file (with DVC: dvc config cache.type copy, then dvc checkout --relink; with "
    "git-annex or DataLad: git annex unlock)"
)


class Entry(NamedTuple):
    """A file or folder. `name` is relative to the folder of images."""

    path: str
    name: str
    kind: Literal["file", "folder", "broken link", "special"]
    size: int
    outside: str = ""
    """What the entry is a link to, if that is outside of the folder, or a folder. It is never read."""

    @classmethod
    def from_info(cls, fs: Any, info: Mapping[str, Any], root: str, prefix: str = "") -> Entry:
        """The entry for an item of `fs.ls`."""
        path = str(info["name"]).rstrip("/")
        size = int(info.get("size") or 0)
        name = prefix + PurePosixPath(path).name
        if info["type"] in ("file", "directory"):
            return cls(path, name, "file" if info["type"] == "file" else "folder", size)
        # Keys of a mounted ConfigMap or Secret are symbolic links, of type "link" or "other" in fsspec.
        if fs.isfile(path):
            target, folder = Path(path).resolve(), Path(root).resolve()
            # The target is read, so that a link that changes meanwhile is not followed.
            return cls(str(target), name, "file", size, "" if target.is_relative_to(folder) else str(target))
        if fs.isdir(path):
            return cls(path, name, "folder", size, str(Path(path).resolve()))
        return cls(path, name, "broken link" if info.get("islink") else "special", size)


@dataclass(frozen=True)
class Selection:
    """What is read of a folder.

    Attributes:
        images: in the order of their names.
        captions: text files by name of the image.
        metadata: files with the captions of several images.
        concepts: kohya's folders by name; empty if the images are not in such folders.
    """

    images: list[Entry]
    captions: dict[str, Entry]
    metadata: list[Entry]
    concepts: dict[str, Concept]
    warnings: list[str]

    def weight(self, image: str) -> int:
        """How often an image is used beside the others of the subject: the repeats of its folder, reduced."""
        if not self.concepts:
            return 1
        divisor = math.gcd(*(concept.repeats for concept in self.concepts.values()))
        return self.concepts[PurePosixPath(image).parts[0]].repeats // divisor


def list_entries(fs: Any, root: str) -> tuple[list[Entry], dict[str, Concept]]:
    """The files of a folder, or of kohya's folders in it (`10_sks dog`) if it has those and no images of its own."""
    entries = [Entry.from_info(fs, info, root) for info in fs.ls(root, detail=True)]
    found = {e: concept for e in entries if e.kind == "folder" and not e.outside and (concept := concept_of(e.name))}
    if any(e.kind == "file" and is_visible(e.name) and is_candidate(e.name) for e in entries):
        return entries, {}
    inner = [
        Entry.from_info(fs, info, root, f"{folder.name}/")
        for folder in found
        for info in fs.ls(folder.path, detail=True)
    ]
    concepts = {folder.name: concept for folder, concept in found.items()}
    return [*(e for e in entries if e not in found), *inner], concepts


def select(uri: str, entries: Sequence[Entry], concepts: Mapping[str, Concept]) -> Selection:
    """Select the images and the files with captions. Checks number and sizes before any is read.

    Raises:
        UserError: there are no images, too many or too large ones, or links that must not be followed.
    """
    visible = sorted((e for e in entries if is_visible(PurePosixPath(e.name).name)), key=lambda e: e.name)
    if broken := [e.name for e in visible if e.kind == "broken link"]:
        rule = f"contains links to files that do not exist: {enumerate_names(broken)}"
        remedy = f"fetch the files (with DVC: dvc pull; with git-annex or DataLad: datalad get), and {_COPY}"
        raise UserError(ValidationIssue(FIELD, uri, rule, remedy))
    by_name = {e.name: e for e in visible if e.kind == "file"}
    files = [e for e in by_name.values() if is_candidate(e.name)]
    captions = {image: by_name[name] for image, name in caption_files((e.name for e in files), by_name).items()}
    metadata = [e for e in by_name.values() if PurePosixPath(e.name).name == METADATA]
    if not files:
        raise UserError(_no_images(uri, visible))
    _check_sizes(uri, files, [*captions.values(), *metadata])
    used = {PurePosixPath(e.name).parts[0] for e in files}
    own = {name: concept for name, concept in concepts.items() if name in used}
    return Selection(files, captions, metadata, own, _warnings(uri, visible, captions, own))


def _warnings(
    uri: str, visible: Sequence[Entry], captions: Mapping[str, Entry], concepts: Mapping[str, Concept]
) -> list[str]:
    folders = [e.name for e in visible if e.kind == "folder"]
    read = {e.name for e in captions.values()}
    notes = [
        e.name
        for e in visible
        if e.kind == "file" and PurePosixPath(e.name).suffix.lower() in NOTES and e.name not in read
    ]
    special = [e.name for e in visible if e.kind == "special"]
    ignored = ((folders, "subfolders are ignored"), (notes + special, "ignored, because they are not images"))
    warnings = [f"{enumerate_names(names)} in {uri}: {reason}" for names, reason in ignored if names]
    if len({concept.repeats for concept in concepts.values()}) > 1:
        weights = ", ".join(f"{concept.repeats} for {name}" for name, concept in concepts.items())
        warnings.append(f"images are used in proportion to the repeats of their folders: {weights}")
    return warnings


def _no_images(uri: str, visible: Sequence[Entry]) -> ValidationIssue:
    folders = [e.name for e in visible if e.kind == "folder"]
    names = folders + [e.name for e in visible if e.kind != "folder"]
    others = f", only {enumerate_names(names)}" if names else ""
    remedy = "add 3-5 images of the subject" if not folders else f"use one of its subfolders: {uri}/{folders[0]}"
    return ValidationIssue(FIELD, uri, f"contains no images{others}", remedy)


def _check_sizes(uri: str, files: Sequence[Entry], texts: Sequence[Entry]) -> None:
    if len(files) > MAX_FILES:
        rule = f"contains {len(files):,} files, the maximum is {MAX_FILES:,}"
        raise UserError(ValidationIssue(FIELD, uri, rule, "use a folder with the 3-5 best images"))
    issues = [
        ValidationIssue(
            e.name,
            None,
            f"has {e.size / 2**20:,.0f} MiB, the maximum is {MAX_FILE_BYTES // 2**20} MiB",
            "reduce its size",
        )
        for e in (*files, *texts)
        if e.size > MAX_FILE_BYTES
    ]
    issues += [
        ValidationIssue(e.name, None, f"is a link to {e.outside}, outside of the folder", _COPY)
        for e in (*files, *texts)
        if e.outside
    ]
    total = sum(e.size for e in (*files, *texts))
    if not issues and total > MAX_TOTAL_BYTES:
        rule = f"contains {total / 2**30:.1f} GiB, the maximum is {MAX_TOTAL_BYTES // 2**30} GiB"
        issues = [ValidationIssue(FIELD, uri, rule, "use a folder with the 3-5 best images")]
    if issues:
        raise UserError(issues)


def enumerate_names(names: Sequence[str]) -> str:
    """The first names, and the number of the others."""
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
