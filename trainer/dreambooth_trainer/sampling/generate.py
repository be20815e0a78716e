"""Generates images on all workers of a Ray cluster.

Small batches go to whichever worker is free. The noise of an image depends on its own seed only, not on the worker or
on the other images of its batch. A batch that was lost with its worker is generated again with the same result.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.families.registry import local_folder
from dreambooth_trainer.sampling.pipeline import (
    ImageRequest,
    LoadedPipeline,
    SamplingConfig,
    load_pipeline,
    sample_batch,
)
from dreambooth_trainer.store.image_store import ImageStore

if TYPE_CHECKING:
    from PIL import Image

_sampling = threading.Lock()


@dataclass(frozen=True)
class GenerationResult:
    """Number of requested images that already existed, and number of images that were generated."""

    reused: int
    generated: int


def generate_batch(
    model: BaseModelRef,
    config: SamplingConfig,
    store: ImageStore,
    requests: Sequence[ImageRequest],
    adapter: Path | None = None,
) -> int:
    """Generate a batch in this process and store it; returns its size. The model stays loaded for the next batch.

    Two threads of a process may call this: one samples while the other writes its images.
    """
    with _sampling:
        second = model.super_resolution and local_folder(model.super_resolution)
        pipeline = _cached_pipeline(local_folder(model), second, config.precision, work_device(), adapter)
        images = _sample(pipeline, config, requests)
    for request, image in zip(requests, images, strict=True):
        store.put(request.name, image)
    return len(requests)


def _sample(pipeline: LoadedPipeline, config: SamplingConfig, requests: Sequence[ImageRequest]) -> list[Image.Image]:
    """Generate images in one batch, or in halves of it if the GPU runs out of memory."""
    import torch

    try:
        return sample_batch(pipeline, config, requests)
    except torch.OutOfMemoryError:
        if len(requests) == 1:
            raise
    # Outside the handler, because the error holds the tensors of the batch.
    torch.cuda.empty_cache()
    half = len(requests) // 2
    return [*_sample(pipeline, config, requests[:half]), *_sample(pipeline, config, requests[half:])]


def unload_models() -> None:
    """Free the cached models. Also return the pages of small tensors to the system, which glibc would keep."""
    from dreambooth_trainer.sampling.encode_images import cached_image_encoder

    _cached_pipeline.cache_clear()
    cached_image_encoder.cache_clear()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


@functools.lru_cache(maxsize=1)
def _cached_pipeline(
    folder: Path, super_resolution: Path | None, precision: str, device: str, adapter: Path | None
) -> LoadedPipeline:
    # The cached pipeline is freed before the next one is loaded: a GPU may not have memory for both.
    _cached_pipeline.cache_clear()
    return load_pipeline(folder, precision, device, adapter=adapter, super_resolution=super_resolution)


def generate_images(
    pool: WorkerPool,
    model: BaseModelRef,
    config: SamplingConfig,
    store: ImageStore,
    requests: Sequence[ImageRequest],
    on_progress: Callable[[int], None] = lambda count: None,
    adapter: Path | None = None,
) -> GenerationResult:
    """Generate the requested images that the store does not contain yet.

    Args:
        adapter: folder to load into the pipeline of the model, see `load_pipeline`. The workers can read it.
        on_progress: called with the number of requested images that exist so far.
    """
    existing = store.names()
    missing = [request for request in requests if request.name not in existing]
    reused = len(requests) - len(missing)
    on_progress(reused)
    if not missing:
        return GenerationResult(reused, 0)
    # Batches are small enough that every worker gets one.
    size = max(1, min(config.batch_size, len(missing) // pool.size().workers))
    batches = ((model, config, store, missing[i : i + size], adapter) for i in range(0, len(missing), size))
    count = reused
    for generated in pool.map(generate_batch, batches, calls_per_worker=2):
        count += generated
        on_progress(count)
    lost = {request.name for request in requests} - store.names()
    if lost:
        raise RuntimeError(f"{store.url} lacks {len(lost)} images that were generated, for example {min(lost)}")
    return GenerationResult(reused, len(missing))
