"""Augmentation: crops at other positions than the center, and mirrored copies.

A variant depends on the seed, the number of the image and the number of the variant only. Therefore latents of all
variants can be cached, and the same ones are used for any number of workers.
"""

from __future__ import annotations

import random

from PIL import Image, ImageOps


def augment(
    photo: Image.Image, side: int, seed: int, number: int, variant: int, *, random_crop: bool, random_flip: bool
) -> Image.Image:
    """A square crop of a photo, `side` x `side` pixels. The crop is as large as the photo allows, as in diffusers.

    Args:
        number: number of the photo.
        variant: with `random_flip`, variants 2 n and 2 n + 1 are the same crop, of which the second is mirrored.
    """
    crop = variant // 2 if random_flip else variant
    position = random.Random(f"{seed} {number} {crop}").random() if random_crop else 0.5  # noqa: S311 - not a secret
    short = min(photo.size)
    left, top = position * (photo.width - short), position * (photo.height - short)
    square = photo.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))
    return ImageOps.mirror(square) if random_flip and variant % 2 else square


def resized(image: Image.Image, side: int) -> Image.Image:
    """A square image at another resolution, `side` x `side` pixels."""
    return image if image.width == side else image.resize((side, side), Image.Resampling.LANCZOS)
