"""Captions of images: in the job, by file name, or in a text file beside each image."""

from __future__ import annotations

import codecs
import unicodedata
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath

from pydantic import TypeAdapter, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Phrase
from dreambooth_api.subject import Subject
from dreambooth_api.words import contains_word

SUFFIX = ".txt"
_PHRASE: TypeAdapter[str] = TypeAdapter(Phrase)
_UTF16_MARKS = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def normalized(name: str) -> str:
    """A file name for comparison.

    macOS stores an accent in a file name as a separate character (NFD), while keyboards produce one character (NFC).
    """
    return unicodedata.normalize("NFC", name)


def caption_for(name: str, captions: Mapping[str, str]) -> str | None:
    """The caption of an image; None if it has none."""
    if name in captions:
        return captions[name]
    key = normalized(name)
    return next((text for other, text in captions.items() if normalized(other) == key), None)


def caption_file_for(image: str, names: Sequence[str]) -> str | None:
    """The text file beside an image, with the image's name and another suffix, as training tools write it."""
    stem = normalized(PurePosixPath(image).stem)
    same = (n for n in names if PurePosixPath(n).suffix.lower() == SUFFIX and normalized(PurePosixPath(n).stem) == stem)
    return next(same, None)


def decode_caption(file: str, content: bytes) -> str:
    """The text of a caption file in UTF-8, or in UTF-16 with a byte order mark, on one line.

    Raises:
        UserError: another encoding, or not a legal prompt.
    """
    encoding = "utf-16" if content.startswith(_UTF16_MARKS) else "utf-8-sig"
    try:
        text = " ".join(content.decode(encoding).split())
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: byte {error.start} is 0x{content[error.start]:02x}"
        raise UserError(ValidationIssue(file, None, rule, "save the file as UTF-8")) from error
    try:
        return _PHRASE.validate_python(text) if text else ""
    except ValidationError as error:
        rule = "is not a caption: it has more than 300 characters, braces or control characters"
        raise UserError(ValidationIssue(file, text, rule, "shorten it, or remove the file")) from error


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


def with_caption_files(subject: Subject, texts: Mapping[str, str]) -> tuple[Subject, list[str]]:
    """A subject with captions from files, and warnings about captions that are not used.

    Args:
        texts: content of the caption files, by name of the image. Captions in the job take precedence.
    """
    added = {name: text for name, text in texts.items() if text and caption_for(name, subject.captions) is None}
    ignored: dict[str, list[str]] = {}
    for name, text in list(added.items()):
        if reason := _unusable(name, text, subject.identifier):
            ignored.setdefault(reason, []).append(name)
            del added[name]
    warnings = [
        f"{', '.join(names[:5])}{' and others' * (len(names) > 5)}: the {SUFFIX} file beside it is ignored: {reason}"
        for reason, names in ignored.items()
    ]
    return subject.model_copy(update={"captions": {**subject.captions, **added}}), warnings


def _unusable(name: str, text: str, identifier: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "the name of the image is not UTF-8"  # the plan is stored as JSON, which cannot represent it
    if identifier == "auto":
        return "captions require a fixed identifier, and identifier is auto"
    return "" if contains_word(text, identifier) else f"it does not contain the identifier {identifier!r}"
