"""Detects generated images that repeat a training image."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE = 32
COPY = 0.95
"""Correlation from which an image counts as a copy of a training image."""


def nearest_correlations(images: Sequence[Image.Image], training: Sequence[Image.Image]) -> list[float]:
    """For each image, its highest correlation with a training image, -1 to 1.

    Pixels of thumbnails of 32 x 32 are compared, not features: encoders such as DINO are made to ignore the background
    and the pose, and repeated backgrounds and poses are what a copy shows.

    Args:
        training: at least one, as the model was trained on them.
    """
    nearest = _standardized(images) @ _standardized(training).T / (3 * SIDE * SIDE)
    return [float(value) for value in nearest.max(axis=1)]


def _standardized(images: Sequence[Image.Image]) -> NDArray[np.float64]:
    """Thumbnails [N, 3072] with mean 0 and standard deviation 1."""
    thumbnails = [image.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX) for image in images]
    rows = np.stack([np.asarray(image, dtype=np.float64).ravel() for image in thumbnails])
    centered = rows - rows.mean(axis=1, keepdims=True)
    return centered / np.maximum(centered.std(axis=1, keepdims=True), 1e-9)
