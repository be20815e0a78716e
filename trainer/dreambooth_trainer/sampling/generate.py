"""ImageRequest pictures with a model on all workers of a Ray cluster.

Small batches go to whichever worker is free. A picture is its name, prompt and seed: its noise does not depend on who
draws it or with which others, so a batch that a dead worker left is drawn again, the same.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_api.job import BaseModelRef
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.store.image_store import ImageStore

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


@dataclass(frozen=True)
class ImageRequest:
    """One picture wanted: its name in the store, its prompt, the seed of its noise."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class SamplingConfig:
    """How pictures are drawn: sampler, side in pixels, weights' number format, pictures at a time."""

    sampler: SamplerSettings
    resolution: int
    precision: str
    batch_size: int


@dataclass(frozen=True)
class GenerationResult:
    """How many of the wanted pictures were there already, how many were made."""

    reused: int
    generated: int


def noise_seed(*parts: str | int) -> int:
    """A seed of 63 bits from what a picture is."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def load_pipeline(folder: Path, precision: str, device: str) -> DiffusionPipeline:
    """A model ready to draw, silent."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    pipeline = open_family(folder).pipeline(folder, dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_batch(pipeline: Any, style: SamplingConfig, drawings: Sequence[ImageRequest]) -> list[Image.Image]:
    """Draw a batch, each picture from its own noise."""
    import torch

    return pipeline(
        [d.prompt for d in drawings],
        num_inference_steps=style.sampler.steps,
        guidance_scale=style.sampler.guidance_scale,
        height=style.resolution,
        width=style.resolution,
        generator=[torch.Generator("cpu").manual_seed(d.seed) for d in drawings],
    ).images


def draw(model: BaseModelRef, style: SamplingConfig, store: ImageStore, drawings: Sequence[ImageRequest]) -> int:
    """Draw and store a batch, here; returns how many there were. The model stays loaded for the next batch."""
    pipeline = _kept_pipeline(local_folder(model), style.precision, work_device())
    for drawing, image in zip(drawings, sample_batch(pipeline, style, drawings), strict=True):
        store.put(drawing.name, image)
    return len(drawings)


def drop_models() -> None:
    """Free the model that the last call kept, also the pages of small tensors, which glibc would hold."""
    _kept_pipeline.cache_clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(maxsize=1)
def _kept_pipeline(folder: Path, precision: str, device: str) -> DiffusionPipeline:
    # The one kept so far goes first: a GPU may not have room for both.
    _kept_pipeline.cache_clear()
    return load_pipeline(folder, precision, device)


def generate_images(
    pool: WorkerPool,
    model: BaseModelRef,
    style: SamplingConfig,
    store: ImageStore,
    wanted: Sequence[ImageRequest],
    done: Callable[[int], None] = lambda count: None,
) -> GenerationResult:
    """Have every wanted picture in the store, drawing those that are missing.

    Args:
        done: called with the number of pictures that are there by now.
    """
    there = store.names()
    missing = [d for d in wanted if d.name not in there]
    reused = len(wanted) - len(missing)
    done(reused)
    if not missing:
        return GenerationResult(reused, 0)
    # Every worker gets something to do, also of a small order.
    size = max(1, min(style.batch_size, len(missing) // len(pool.start())))
    batches = ((model, style, store, missing[i : i + size]) for i in range(0, len(missing), size))
    count = reused
    for drawn in pool.map(draw, batches):
        count += drawn
        done(count)
    lost = {d.name for d in wanted} - store.names()
    if lost:
        raise RuntimeError(f"{store.url} lacks {len(lost)} pictures that were drawn, for example {min(lost)}")
    return GenerationResult(reused, len(missing))
