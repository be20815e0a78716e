"""All of a subject's images at once: every bad one is told, and what is merely odd is said."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import NamedTuple

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.images.decode import kept_share, prepare_image
from dreambooth_trainer.images.sources import RawImage

FEW, MANY = 3, 20
"""The paper uses 3-5 images; outside these bounds we say so."""


@dataclass(frozen=True)
class PreparedImage:
    """A training image.

    Attributes:
        name: file name, as captions name it.
        image: RGB, square.
        digest: SHA-256 of size and pixels, hex.
        caption: its own instance prompt, if it has one.
    """

    name: str
    image: Image.Image
    digest: str
    caption: str | None = None


class Prepared(NamedTuple):
    """What can be trained on, in order of name, and what the user should hear about it."""

    images: list[PreparedImage]
    warnings: list[str]


def prepare_images(raws: Sequence[RawImage], resolution: int, captions: Mapping[str, str] | None = None) -> Prepared:
    """Decode, turn upright, crop and resize all images.

    Raises:
        UserError: there is none, some cannot be used, or a caption names no image; all issues at once.
    """
    captions = captions or {}
    if not raws:
        remedy = "put 3-5 pictures of the subject there"
        raise UserError(ValidationIssue("spec.subject.images", None, "holds no images", remedy))
    issues = list(_caption_faults(captions, [raw.name for raw in raws]))
    images: list[PreparedImage] = []
    warnings: list[str] = []
    for raw in raws:
        try:
            image = prepare_image(raw, resolution)
        except UserError as error:
            issues += error.issues
            continue
        images.append(PreparedImage(raw.name, image, digest_of(image), captions.get(raw.name)))
        warnings += _oddities(raw, resolution)
    if issues:
        raise UserError(issues)
    return Prepared(images, [*_count_warning(len(images)), *_duplicates(images), *warnings])


def digest_of(image: Image.Image) -> str:
    """SHA-256 of size and pixels: the same picture under another name or format has the same."""
    return hashlib.sha256(b"%dx%d\n" % image.size + image.tobytes()).hexdigest()


def _caption_faults(captions: Mapping[str, str], names: Sequence[str]) -> Iterable[ValidationIssue]:
    for name in captions:
        if name not in names:
            close = get_close_matches(name, names, n=1)
            shown = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
            remedy = f"did you mean {close[0]}?" if close else f"the images are {shown}"
            yield ValidationIssue(f'spec.subject.captions["{name}"]', None, "names no image of the subject", remedy)


def _oddities(raw: RawImage, resolution: int) -> Iterable[str]:
    share, shorter = kept_share(raw)
    if share < 0.5:
        yield f"{raw.name}: only the middle {share:.0%} of it is kept; crop it around the subject yourself"
    if shorter < resolution:
        yield f"{raw.name}: {shorter} pixels were enlarged to {resolution}; a larger picture is sharper"


def _count_warning(count: int) -> Iterable[str]:
    if count < FEW:
        yield f"{count} image{'s' if count > 1 else ''}: the method works best with 3-5, from several sides"
    elif count > MANY:
        yield f"{count} images: the method is made for 3-5; more dilute the subject and need more steps"


def _duplicates(images: Sequence[PreparedImage]) -> Iterable[str]:
    first: dict[str, str] = {}
    for image in images:
        if image.digest in first:
            yield f"{image.name} is the same picture as {first[image.digest]}; it counts twice in training"
        first.setdefault(image.digest, image.name)
