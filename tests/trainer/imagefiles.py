"""Image files for the tests of `images`, generated in memory."""

import io
from typing import Any

import numpy as np
from PIL import Image

USE_IMAGE = "use a JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF image, or remove the file"
"""Remedy for files that are not images."""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """The bytes of an image file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def gradient(width: int = 96, height: int = 64) -> Image.Image:
    """Red increases to the right, green downward: any rotation or reflection is visible."""
    x, y = np.linspace(0, 255, width), np.linspace(0, 255, height)
    pixels = np.stack([*np.meshgrid(x, y), np.full((height, width), 60)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8))


def noise(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    """A sharp image without a near-duplicate, unless the seed is the same."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), np.uint8))
