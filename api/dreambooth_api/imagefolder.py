"""Folders of images as people and training tools keep them: captions, other sidecars, and folders with repeats. Pure.

`dreambooth run` and `kubectl dreambooth create` read folders by the same rules.
"""

from __future__ import annotations

import codecs
import json
import re
import unicodedata
from collections.abc import Iterable, Mapping
from pathlib import PurePosixPath
from typing import NamedTuple

from pydantic import TypeAdapter, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Phrase

CAPTION_SUFFIX = ".txt"
METADATA = "metadata.jsonl"
"""Captions of all images of a folder, one JSON object per line, as Hugging Face Datasets reads them (ImageFolder)."""
NOTES = {CAPTION_SUFFIX, ".csv", ".md", ".yaml", ".yml"}
"""Files that a user may expect to be read. Ignoring them is worth a warning."""
SIDECARS = {".caption", ".npz", ".json", ".jsonl", ".xmp", ".aae", ".ini", ".db"}
"""Files that cameras, galleries, operating systems and training tools write next to images."""
SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}
"""Folders that macOS, Synology and Windows write beside images."""
_CONCEPT = re.compile(r"([1-9][0-9]{0,3})_(\S.*)")
_PHRASE: TypeAdapter[str] = TypeAdapter(Phrase)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


class Concept(NamedTuple):
    """The name of a folder of kohya's sd-scripts, such as `10_sks dog`: repeats per epoch, and tokens."""

    repeats: int
    tokens: str


def concept_of(folder: str) -> Concept | None:
    """Repeats and tokens in the name of a folder; None if it has another form."""
    match = _CONCEPT.fullmatch(folder)
    return Concept(int(match[1]), match[2].strip()) if match else None


def is_visible(name: str) -> bool:
    """Whether a file or folder is neither hidden nor written by an operating system."""
    return bool(name) and not name.startswith(".") and name not in SYSTEM_FOLDERS


def normalized(name: str) -> str:
    """A file name for comparison.

    macOS stores an accent in a file name as a separate character (NFD), while keyboards produce one character (NFC).
    """
    return unicodedata.normalize("NFC", name)


def is_candidate(name: str) -> bool:
    """Whether a file is expected to be an image: it is neither a note nor a sidecar."""
    return PurePosixPath(name).suffix.lower() not in NOTES | SIDECARS


def caption_files(images: Iterable[str], names: Iterable[str]) -> dict[str, str]:
    """The text files beside images, which have the names of the images and another suffix, by image."""
    texts: dict[str, str] = {}
    for name in names:
        if PurePosixPath(name).suffix.lower() == CAPTION_SUFFIX:
            texts.setdefault(_stem(name), name)
    return {image: texts[stem] for image in images if (stem := _stem(image)) in texts}


def _stem(name: str) -> str:
    return normalized(str(PurePosixPath(name).with_suffix("")))


def decode_caption(file: str, content: bytes) -> str:
    """The text of a caption file in UTF-8, or in UTF-16 with a byte order mark, on one line.

    Raises:
        UserError: another encoding, or not a legal prompt.
    """
    text = " ".join(_decode(file, content).split())
    return _phrase(file, text)


def decode_captions(files: Mapping[str, tuple[str, bytes]]) -> dict[str, str]:
    """The texts of caption files, given as name and content by name of the image.

    Raises:
        UserError: with the issues of all files.
    """
    texts: dict[str, str] = {}
    issues: list[ValidationIssue] = []
    for image, (file, content) in files.items():
        try:
            texts[image] = decode_caption(file, content)
        except UserError as error:
            issues += error.issues
    if issues:
        raise UserError(issues)
    return texts


def decode_metadata(file: str, content: bytes) -> dict[str, str]:
    """The captions in a `metadata.jsonl`, `text` by `file_name`. Other keys, and rows without `text`, are not used.

    Args:
        file: path relative to the folder of images. Names of images are relative to its folder.

    Raises:
        UserError: with the issues of all lines.
    """
    texts: dict[str, str] = {}
    issues: list[ValidationIssue] = []
    for number, line in enumerate(_decode(file, content).split("\n"), 1):
        where = f"{file} line {number}"
        if not line.strip():
            continue
        try:
            name, text = _metadata_row(where, line)
            if text is not None:
                texts[str(PurePosixPath(file).parent / name)] = _phrase(where, " ".join(text.split()))
        except UserError as error:
            issues += error.issues
    if issues:
        raise UserError(issues)
    return texts


def _metadata_row(where: str, line: str) -> tuple[str, str | None]:
    remedy = 'write, for example, {"file_name": "0.png", "text": "a sks dog on the beach"}'
    try:
        row: object = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(ValidationIssue(where, None, f"is not JSON ({error})", remedy)) from error
    name = row.get("file_name") if isinstance(row, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    text = row.get("text") if isinstance(row, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if not isinstance(name, str) or not name:
        raise UserError(ValidationIssue(where, None, "has no file_name", remedy))
    if text is not None and not isinstance(text, str):
        raise UserError(ValidationIssue(where, None, "has a text that is not a string", remedy))
    return name, text


def _decode(file: str, content: bytes) -> str:
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}"
        raise UserError(ValidationIssue(file, None, rule, "save the file as UTF-8")) from error


def _phrase(where: str, text: str) -> str:
    try:
        return _PHRASE.validate_python(text) if text else ""
    except ValidationError as error:
        rule = "is not a caption: it has more than 300 characters, braces or control characters"
        remedy = "shorten it" if where.partition(" line ")[1] else "shorten it, or remove the file"
        raise UserError(ValidationIssue(where, text, rule, remedy)) from error
