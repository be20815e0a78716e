"""Captions of images: in the job, by file name, or in files of the folder of images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from types import MappingProxyType

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import Concept, decode_captions, decode_metadata, normalized
from dreambooth_api.subject import Subject
from dreambooth_api.words import contains_word

_TEXT_FILE = "the .txt file beside it"
_FOLDER = "the name of its folder"


def caption_for(name: str, captions: Mapping[str, str]) -> str | None:
    """The caption of an image; None if it has none."""
    if name in captions:
        return captions[name]
    key = normalized(name)
    return next((text for other, text in captions.items() if normalized(other) == key), None)


def merge_captions(
    images: Sequence[str],
    files: Mapping[str, tuple[str, bytes]],
    metadata: Mapping[str, bytes],
    concepts: Mapping[str, Concept],
) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """The captions in a folder of images, where each is from if not from a text file, and warnings.

    A text file beside an image takes precedence over `metadata.jsonl`, and that over the tokens of kohya's folder.

    Args:
        images: names of the images.
        files: name and content of text files, by name of the image.
        metadata: contents of the `metadata.jsonl` files by name.
        concepts: kohya's folders by name.

    Raises:
        UserError: with the issues of all files.
    """
    issues: list[ValidationIssue] = []
    texts: dict[str, str] = {}
    listed: dict[str, str] = {}
    warnings: list[str] = []
    try:
        texts = decode_captions(files)
    except UserError as error:
        issues += error.issues
    for file, content in metadata.items():
        try:
            found = decode_metadata(file, content)
        except UserError as error:
            issues += error.issues
            continue
        known = {normalized(image): image for image in images}
        listed |= {known[normalized(name)]: text for name, text in found.items() if normalized(name) in known}
        if missing := len([name for name in found if normalized(name) not in known]):
            warnings.append(f"{file} has captions of {missing} file(s) that are not among the images")
    if issues:
        raise UserError(issues)
    tokens = {image: concepts[PurePosixPath(image).parts[0]].tokens for image in images} if concepts else {}
    listed = {image: text for image, text in listed.items() if text and not texts.get(image)}
    tokens = {image: text for image, text in tokens.items() if not texts.get(image) and image not in listed}
    origins = {**dict.fromkeys(listed, "its text in metadata.jsonl"), **dict.fromkeys(tokens, _FOLDER)}
    return {**texts, **listed, **tokens}, origins, warnings


def with_caption_files(
    subject: Subject, texts: Mapping[str, str], origins: Mapping[str, str] = MappingProxyType({})
) -> tuple[Subject, list[str]]:
    """A subject with captions from files, and warnings about captions that are not used.

    Args:
        texts: captions in files, by name of the image. Captions in the job take precedence, and so does its instance
            prompt over the names of folders.
        origins: see `RawImages`.
    """
    added = {name: text for name, text in texts.items() if text and caption_for(name, subject.captions) is None}
    if subject.instance_prompt is not None:
        added = {name: text for name, text in added.items() if origins.get(name) != _FOLDER}
    ignored: dict[tuple[str, str], list[str]] = {}
    for name, text in list(added.items()):
        if reason := _unusable(name, text, subject.identifier):
            ignored.setdefault((origins.get(name, _TEXT_FILE), reason), []).append(name)
            del added[name]
    warnings = [
        f"{', '.join(names[:5])}{' and others' * (len(names) > 5)}: {origin} is ignored: {reason}"
        for (origin, reason), names in ignored.items()
    ]
    return subject.model_copy(update={"captions": {**subject.captions, **added}}), warnings


def _unusable(name: str, text: str, identifier: str) -> str:
    if any("\ud800" <= character <= "\udfff" for character in name):
        return "the name of the image is not UTF-8"  # the plan is stored as JSON, which cannot represent it
    if identifier == "auto":
        return "captions require a fixed identifier, and identifier is auto"
    return "" if contains_word(text, identifier) else f"it does not contain the identifier {identifier!r}"
