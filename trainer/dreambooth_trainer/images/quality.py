"""Finds blurred images and near-duplicates. Both thresholds are measured on the photos of the paper's 30 subjects."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from PIL import Image

from dreambooth_trainer.images.selection import enumerate_names

MIN_SHARPNESS = 30
"""Variance of the Laplacian. The paper's photos have 100 to 3,000, and below 16 after a Gaussian blur of 2 pixels."""
SHARPNESS_SIDE = 512
"""Side length in pixels at which sharpness is measured. Smaller images are not enlarged."""
MAX_HASH_DISTANCE = 4
"""Of 64 bits. Copies at another size and quality differ in at most 1, different photos of the paper in 6 or more."""


def sharpness(image: Image.Image) -> float:
    """Variance of the Laplacian of the brightness (0 to 255) at a fixed size (Pech-Pacheco et al. 2000)."""
    side = min(SHARPNESS_SIDE, *image.size)
    gray = np.asarray(image.convert("L").resize((side, side), Image.Resampling.LANCZOS), dtype=np.float32)
    laplacian = gray[1:-1, :-2] + gray[1:-1, 2:] + gray[:-2, 1:-1] + gray[2:, 1:-1] - 4 * gray[1:-1, 1:-1]
    return float(laplacian.var())


def difference_hash(image: Image.Image) -> int:
    """64 bits: whether each of 8 x 8 areas is darker than its right neighbor. Similar images differ in few bits."""
    gray = np.asarray(image.convert("L").resize((9, 8), Image.Resampling.LANCZOS), dtype=np.int16)
    return int("".join("01"[bit] for bit in (gray[:, :-1] < gray[:, 1:]).flatten().astype(int)), 2)


def blur_warnings(images: Sequence[tuple[str, Image.Image]]) -> Iterable[str]:
    """A warning that names all blurred images."""
    blurred = [(name, value) for name, image in images if (value := sharpness(image)) < MIN_SHARPNESS]
    if blurred:
        yield (
            f"{enumerate_names([f'{name} ({value:.0f})' for name, value in blurred])}: may be blurred: the variance of "
            f"the Laplacian is less than {MIN_SHARPNESS}; training learns the blur"
        )


def near_duplicate_warnings(images: Sequence[tuple[str, Image.Image]]) -> Iterable[str]:
    """A warning that names each image which looks like an earlier one. Equal pixels are not reported here."""
    earlier: list[tuple[str, Image.Image, int]] = []
    pairs: list[str] = []
    for name, image in images:
        bits = difference_hash(image)
        similar = (other for other in earlier if (bits ^ other[2]).bit_count() <= MAX_HASH_DISTANCE)
        first = next((other for other, pixels, _ in similar if pixels.tobytes() != image.tobytes()), None)
        pairs += [] if first is None else [f"{name} of {first}"]
        earlier.append((name, image, bits))
    if pairs:
        yield f"near-duplicates: {enumerate_names(pairs)}; training uses both"
