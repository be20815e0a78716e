"""Prepares all images of a subject. Reports all unusable files at once, and warns about unusual ones."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.images.captions import caption_for
from dreambooth_trainer.images.decode import crop_size, prepare_image
from dreambooth_trainer.images.quality import blur_warnings, near_duplicate_warnings
from dreambooth_trainer.images.sources import RawImage

MIN_RECOMMENDED, MAX_RECOMMENDED = 3, 20
"""The paper uses 3-5 images. A number outside these bounds causes a warning."""


@dataclass(frozen=True)
class PreparedImage:
    """A training image.

    Attributes:
        name: file name, the key in `captions`.
        image: RGB, square.
        digest: SHA-256 of size and pixels, in hex.
        caption: instance prompt of this image, if it has its own.
    """

    name: str
    image: Image.Image
    digest: str
    caption: str | None = None


class PreparedImages(NamedTuple):
    """Training images in the order of their names, and warnings for the user."""

    images: list[PreparedImage]
    warnings: list[str]


def prepare_images(
    raws: Sequence[RawImage], resolution: int, captions: Mapping[str, str] | None = None
) -> PreparedImages:
    """Decode, turn upright, crop and resize all images.

    Raises:
        UserError: there are no images, some cannot be used, or a caption has no image; with all issues.
    """
    captions = captions or {}
    if not raws:
        remedy = "add 3-5 images of the subject"
        raise UserError(ValidationIssue("spec.subject.images", None, "contains no images", remedy))
    issues = list(_caption_issues(captions, [raw.name for raw in raws]))
    images: list[PreparedImage] = []
    warnings: list[str] = []
    for raw in raws:
        try:
            image = prepare_image(raw, resolution)
        except UserError as error:
            issues += error.issues
            continue
        images.append(PreparedImage(raw.name, image, digest_of(image), caption_for(raw.name, captions)))
        warnings += _size_warnings(raw, resolution)
    if issues:
        raise UserError(issues)
    named = [(image.name, image.image) for image in images]
    copies = [*_duplicate_warnings(images), *near_duplicate_warnings(named)]
    return PreparedImages(images, [*_count_warnings(len(images)), *copies, *warnings, *blur_warnings(named)])


def digest_of(image: Image.Image) -> str:
    """SHA-256 of size and pixels in hex. It does not depend on the file's name and format."""
    return hashlib.sha256(b"%dx%d\n" % image.size + image.tobytes()).hexdigest()


def _caption_issues(captions: Mapping[str, str], names: Sequence[str]) -> Iterable[ValidationIssue]:
    for name, caption in captions.items():
        if not any(caption_for(image, {name: caption}) for image in names):
            close = get_close_matches(name, names, n=1)
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            remedy = f"did you mean {close[0]}?" if close else f"the images are {shown}"
            yield ValidationIssue(f'spec.subject.captions["{name}"]', None, "is not an image of the subject", remedy)


def _size_warnings(raw: RawImage, resolution: int) -> Iterable[str]:
    share, side = crop_size(raw)
    if share < 0.5:
        yield f"{raw.name}: cropping to the center square keeps {share:.0%} of the image; crop it around the subject"
    if side < resolution:
        yield f"{raw.name}: upscaled from {side} to {resolution} pixels; a larger image is sharper"


def _count_warnings(count: int) -> Iterable[str]:
    if count < MIN_RECOMMENDED:
        yield f"{count} image{'s' if count > 1 else ''}: 3-5 images from different angles work best"
    elif count > MAX_RECOMMENDED:
        yield f"{count} images: 3-5 images work best; more images need more steps and reduce subject fidelity"


def _duplicate_warnings(images: Sequence[PreparedImage]) -> Iterable[str]:
    first: dict[str, str] = {}
    for image in images:
        if image.digest in first:
            yield f"{image.name} is a duplicate of {first[image.digest]}; training uses both"
        first.setdefault(image.digest, image.name)
