"""Generates images on all workers of a Ray cluster.

Small batches go to whichever worker is free. The noise of an image depends on its own seed only, not on the worker or
on the other images of its batch. A batch that was lost with its worker is generated again with the same result.
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
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.store.image_store import ImageStore

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


@dataclass(frozen=True)
class ImageRequest:
    """One image to generate: its name in the image store, its prompt, and the seed of its noise."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class SamplingConfig:
    """Settings of image generation.

    Attributes:
        resolution: side of the square images, pixels.
        precision: number format of the weights on a GPU, "bf16" or "fp32". CPUs use fp32.
        batch_size: maximum number of images per pipeline call.
    """

    sampler: SamplerSettings
    resolution: int
    precision: str
    batch_size: int


@dataclass(frozen=True)
class GenerationResult:
    """Number of requested images that already existed, and number of images that were generated."""

    reused: int
    generated: int


def noise_seed(*parts: str | int) -> int:
    """A 63-bit seed derived from everything that identifies an image."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def load_pipeline(folder: Path, precision: str, device: str, adapter: Path | None = None) -> DiffusionPipeline:
    """The pipeline of a diffusers folder on a device, without a progress bar.

    Args:
        adapter: folder of a LoRA adapter to load into the pipeline.
    """
    import torch

    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    pipeline: Any = open_family(folder).pipeline(folder, dtype)
    if adapter is not None:
        pipeline.load_lora_weights(adapter, weight_name=ADAPTER_FILE, local_files_only=True)
    pipeline.to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def sample_batch(pipeline: Any, config: SamplingConfig, requests: Sequence[ImageRequest]) -> list[Image.Image]:
    """Generate a batch in one pipeline call, each image from its own noise."""
    import torch

    return pipeline(
        [request.prompt for request in requests],
        num_inference_steps=config.sampler.steps,
        guidance_scale=config.sampler.guidance_scale,
        height=config.resolution,
        width=config.resolution,
        generator=[torch.Generator("cpu").manual_seed(request.seed) for request in requests],
    ).images


def generate_batch(
    model: BaseModelRef, config: SamplingConfig, store: ImageStore, requests: Sequence[ImageRequest]
) -> int:
    """Generate a batch in this process and store it; returns its size. The model stays loaded for the next batch."""
    pipeline = _cached_pipeline(local_folder(model), config.precision, work_device())
    for request, image in zip(requests, sample_batch(pipeline, config, requests), strict=True):
        store.put(request.name, image)
    return len(requests)


def unload_models() -> None:
    """Free the cached model. Also return the pages of small tensors to the system, which glibc would keep."""
    _cached_pipeline.cache_clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(maxsize=1)
def _cached_pipeline(folder: Path, precision: str, device: str) -> DiffusionPipeline:
    # The cached pipeline is freed before the next one is loaded: a GPU may not have memory for both.
    _cached_pipeline.cache_clear()
    return load_pipeline(folder, precision, device)


def generate_images(
    pool: WorkerPool,
    model: BaseModelRef,
    config: SamplingConfig,
    store: ImageStore,
    requests: Sequence[ImageRequest],
    on_progress: Callable[[int], None] = lambda count: None,
) -> GenerationResult:
    """Generate the requested images that the store does not contain yet.

    Args:
        on_progress: called with the number of requested images that exist so far.
    """
    existing = store.names()
    missing = [request for request in requests if request.name not in existing]
    reused = len(requests) - len(missing)
    on_progress(reused)
    if not missing:
        return GenerationResult(reused, 0)
    # Batches are small enough that every worker gets one.
    size = max(1, min(config.batch_size, len(missing) // len(pool.start())))
    batches = ((model, config, store, missing[i : i + size]) for i in range(0, len(missing), size))
    count = reused
    for generated in pool.map(generate_batch, batches):
        count += generated
        on_progress(count)
    lost = {request.name for request in requests} - store.names()
    if lost:
        raise RuntimeError(f"{store.url} lacks {len(lost)} images that were generated, for example {min(lost)}")
    return GenerationResult(reused, len(missing))
