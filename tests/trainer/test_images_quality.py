"""Blurred images and near-duplicates are reported, and nothing is reported of sharp and different ones."""

from __future__ import annotations

import io
import re

import numpy as np
import pytest
from imagefiles import encoded
from PIL import Image, ImageEnhance, ImageFilter

from dreambooth_trainer.images import RawImage, prepare_images, read_folder


def photo(seed: int, side: int = 512) -> Image.Image:
    """Shapes of all sizes, as in a photo: noise at several scales."""
    random, pixels = np.random.default_rng(seed), np.zeros((side, side, 3))
    for cells in (4, 16, 64, side):
        noise = Image.fromarray(random.integers(0, 255, (cells, cells, 3), np.uint8))
        pixels += np.asarray(noise.resize((side, side), Image.Resampling.BICUBIC), dtype=np.float64) / 4
    return Image.fromarray(pixels.astype(np.uint8))


def warnings(*images: Image.Image, resolution: int = 256) -> list[str]:
    raws = [RawImage(f"{number}.png", encoded(image)) for number, image in enumerate(images)]
    return prepare_images(raws, resolution).warnings


def test_sharp_and_different_images_have_no_warnings() -> None:
    assert warnings(*(photo(seed) for seed in range(4))) == []
    for name in ("dog-pink-blue", "clock-purple-lime"):
        assert prepare_images(read_folder(f"builtin:sprites/{name}").images, 32).warnings == []


@pytest.mark.parametrize("resolution", [256, 512, 1024])
def test_a_blurred_image_is_reported_at_any_resolution(resolution: int) -> None:
    blurred = photo(1, side=1024).filter(ImageFilter.GaussianBlur(12))
    found = warnings(photo(0, side=1024), blurred, photo(2, side=1024), resolution=resolution)
    assert len(found) == 1
    assert re.fullmatch(r"1\.png \(\d+\): may be blurred: the variance of the Laplacian is less than 30; .*", found[0])


def test_near_duplicates_are_reported() -> None:
    original = photo(0)
    file = io.BytesIO()
    ImageEnhance.Brightness(original.resize((300, 300))).enhance(1.1).save(file, "JPEG", quality=60)
    copy = Image.open(file)
    found = warnings(photo(1), original, photo(2), copy)
    assert found == ["near-duplicates: 3.png of 1.png; training uses both"]


def test_equal_images_are_reported_once() -> None:
    assert warnings(photo(0), photo(1), photo(0)) == ["2.png is a duplicate of 0.png; training uses both"]
