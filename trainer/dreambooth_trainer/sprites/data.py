"""The training set: sprites and their captions, rendered once and stored in a compressed file."""

import json
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dreambooth_trainer.sprites.captions import caption
from dreambooth_trainer.sprites.randomness import seeded
from dreambooth_trainer.sprites.world import SIZE, random_scene, random_subject, render

CHUNK = 500
"""Images per work unit. The seed of a unit depends only on its index, not on the number of processes."""


@dataclass(frozen=True)
class SpriteSet:
    """`images` uint8 [N, 32, 32, 3]; `captions` N lists of equal length."""

    images: NDArray[np.uint8]
    captions: list[list[str]]


def make_sprites(count: int, captions_per_image: int, seed: int) -> SpriteSet:
    """Render `count` random sprites on all cores. Equal arguments give equal results."""
    sizes = [min(CHUNK, count - start) for start in range(0, count, CHUNK)]
    units = [(f"{seed}/{index}", size, captions_per_image) for index, size in enumerate(sizes)]
    if len(units) == 1:
        parts = [_render_unit(units[0])]
    else:
        # A child that is forked from a process with running OpenMP threads may hang.
        with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
            parts = list(pool.map(_render_unit, units))
    return SpriteSet(
        np.concatenate([part.images for part in parts]), [texts for part in parts for texts in part.captions]
    )


def save_sprites(sprites: SpriteSet, path: Path) -> None:
    """Write a set atomically, because the next stage only checks whether the file exists."""
    partial = path.with_suffix(".partial.npz")
    captions = np.frombuffer(json.dumps(sprites.captions).encode(), dtype=np.uint8)
    np.savez_compressed(partial, images=sprites.images, captions=captions)
    partial.replace(path)


def load_sprites(path: Path) -> SpriteSet:
    """Read a set written by `save_sprites`."""
    with np.load(path, allow_pickle=False) as stored:
        return SpriteSet(stored["images"], json.loads(stored["captions"].tobytes()))


def _render_unit(unit: tuple[str, int, int]) -> SpriteSet:
    seed, count, captions_per_image = unit
    rng = seeded(seed)
    images = np.empty((count, SIZE, SIZE, 3), dtype=np.uint8)
    captions: list[list[str]] = []
    for index in range(count):
        subject, scene = random_subject(rng), random_scene(rng)
        images[index] = render(subject, scene)
        captions.append([caption(subject, scene, rng) for _ in range(captions_per_image)])
    return SpriteSet(images, captions)
