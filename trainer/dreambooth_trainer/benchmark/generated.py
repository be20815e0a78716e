"""Reads generated images with their prompts from a folder: of any program, or of a finished job."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import (
    METADATA,
    caption_files,
    decode_caption,
    decode_metadata,
    is_candidate,
    normalized,
)
from dreambooth_api.words import without_word
from dreambooth_trainer.images.decode import read_image
from dreambooth_trainer.images.selection import MAX_FILE_BYTES
from dreambooth_trainer.images.sources import RawImage, read_folder
from dreambooth_trainer.metrics.measure import PromptImages

_SHOWN = 5


@dataclass(frozen=True)
class ScoredImages:
    """The images of one subject that are scored together.

    Attributes:
        references: real images of the subject.
        groups: generated images by prompt.
        class_images: generated images of the class prompt.
    """

    references: Sequence[Image.Image]
    groups: Sequence[PromptImages]
    class_images: Sequence[Image.Image]


def read_scored_images(
    images: Path, references: str, class_images: Path | None, prompt: str | None, identifier: str | None
) -> ScoredImages:
    """Read the images of `dreambooth score`.

    Args:
        images: folder of generated images. The prompt of each is in `metadata.jsonl` or in a text file beside it.
        references: folder, URL or built-in subject with real images.
        prompt: prompt of images without one of their own.
        identifier: word to remove from all prompts, because CLIP does not know it.

    Raises:
        UserError: with the issues of all folders.
        TransientError: an object store failed.
    """
    issues: list[ValidationIssue] = []
    found: dict[str, Any] = {"references": [], "groups": [], "class_images": []}
    steps = {
        "references": lambda: read_references("--references", references),
        "groups": lambda: read_groups(images, prompt, identifier),
        "class_images": lambda: [] if class_images is None else _decode("--class-images", _files(class_images)),
    }
    for name, step in steps.items():
        try:
            found[name] = step()
        except UserError as error:
            issues += error.issues
    if issues:
        raise UserError(issues)
    return ScoredImages(**found)


def read_groups(folder: Path, prompt: str | None, identifier: str | None) -> list[PromptImages]:
    """The images of a folder by prompt, in the order of the names of their files.

    Raises:
        UserError: with all files that cannot be used, and all images without a prompt.
    """
    files = _files(folder, "--images")
    issues: list[ValidationIssue] = []
    prompts = _prompts(folder, [path.name for path in files], issues)
    if without := [path.name for path in files if path.name not in prompts and prompt is None]:
        more = f" and {len(without) - _SHOWN} more" if len(without) > _SHOWN else ""
        rule = f"has no prompt for {', '.join(without[:_SHOWN])}{more}"
        remedy = (
            f'write {METADATA} with one line per image, {{"file_name": "{without[0]}", "text": "a dog on the beach"}}, '
            f"or a text file beside each image ({Path(without[0]).stem}.txt), or set --prompt"
        )
        issues.append(ValidationIssue("--images", str(folder), rule, remedy))
    texts = {path.name: prompts.get(path.name, prompt or "") for path in files}
    if identifier is not None:
        cleaned = {name: without_word(text, identifier) for name, text in texts.items()}
        if cleaned == texts:
            rule, remedy = "is in no prompt", "set the word that stands for the subject, or leave it out"
            issues.append(ValidationIssue("--identifier", identifier, rule, remedy))
        texts = cleaned
    try:
        images = dict(zip(texts, _decode("--images", files), strict=True))
    except UserError as error:
        raise UserError([*issues, *error.issues]) from None
    if issues:
        raise UserError(issues)
    by_text: dict[str, list[Image.Image]] = {}
    for name, text in texts.items():
        by_text.setdefault(text, []).append(images[name])
    return [PromptImages(text, group) for text, group in by_text.items()]


def _files(folder: Path, option: str = "--class-images") -> list[Path]:
    """The images of a folder: all files except hidden ones and those that accompany images."""
    if not folder.is_dir():
        rule = "is a file" if folder.exists() else "does not exist"
        raise UserError(ValidationIssue(option, str(folder), rule, "pass a folder of images"))
    visible = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    files = [path for path in visible if is_candidate(path.name)]
    if not files:
        raise UserError(ValidationIssue(option, str(folder), "contains no images", "pass the folder that has them"))
    return files


def read_references(option: str, uri: str) -> list[Image.Image]:
    """The real images of a subject: of a folder, a URL or a built-in subject.

    Args:
        option: for error messages.

    Raises:
        UserError: with all images that cannot be used.
        TransientError: an object store failed.
    """
    try:
        raws = read_folder(uri).images
    except UserError as error:
        raise UserError([_at(option, issue) for issue in error.issues]) from error
    return _decode_raw(option, raws)


def _decode(option: str, files: Sequence[Path]) -> list[Image.Image]:
    large = [path.name for path in files if path.stat().st_size > MAX_FILE_BYTES]
    if large:
        rule = f"is larger than {MAX_FILE_BYTES // 2**20} MiB"
        raise UserError([ValidationIssue(f'{option}["{name}"]', None, rule, "reduce its size") for name in large])
    return _decode_raw(option, (RawImage(path.name, path.read_bytes()) for path in files))


def _decode_raw(option: str, raws: Iterable[RawImage]) -> list[Image.Image]:
    images: list[Image.Image] = []
    issues: list[ValidationIssue] = []
    for raw in raws:
        try:
            images.append(read_image(raw))
        except UserError as error:
            issues += [_at(option, issue) for issue in error.issues]
    if issues:
        raise UserError(issues)
    return images


def _at(option: str, issue: ValidationIssue) -> ValidationIssue:
    """An issue of `images`, whose path is a field of a job or the name of a file, at an option."""
    path = option if issue.path.startswith("spec.") else f'{option}["{issue.path}"]'
    return ValidationIssue(path, issue.value, issue.rule, issue.remedy)


def _prompts(folder: Path, names: Sequence[str], issues: list[ValidationIssue]) -> dict[str, str]:
    """The prompts in the metadata of a folder and, with precedence, in text files, by name of the image."""
    prompts: dict[str, str] = {}
    if (folder / METADATA).is_file():
        known, found = {normalized(name): name for name in names}, dict[str, str]()
        try:
            found = decode_metadata(METADATA, (folder / METADATA).read_bytes())
        except UserError as error:
            issues += [_at("--images", issue) for issue in error.issues]
        prompts = {known[normalized(name)]: text for name, text in found.items() if normalized(name) in known}
        if missing := sorted(name for name in found if normalized(name) not in known):
            rule = f"has prompts of files that are not images of the folder: {', '.join(missing[:_SHOWN])}"
            issues.append(
                ValidationIssue(f'--images["{METADATA}"]', None, rule, "correct file_name, or remove the lines")
            )
    for name, file in caption_files(names, [path.name for path in folder.iterdir() if path.is_file()]).items():
        try:
            prompts |= {name: text} if (text := decode_caption(file, (folder / file).read_bytes())) else {}
        except UserError as error:
            issues += [_at("--images", issue) for issue in error.issues]
    return {name: text for name, text in prompts.items() if text}
