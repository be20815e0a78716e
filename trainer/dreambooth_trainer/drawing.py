"""Drawing pictures with a model on all workers of a Ray cluster.

The driver hands out small batches to whichever actor is free. A picture is its name, prompt and seed: its noise does
not depend on who draws it or with which others. Ray restarts a dead actor and repeats its batch; a picture that was
stored by then is not drawn twice.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray

from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.plan import SamplerPlan
from dreambooth_trainer.spec import BaseModelRef
from dreambooth_trainer.store.pictures import PictureStore

if TYPE_CHECKING:
    from diffusers import DiffusionPipeline
    from PIL import Image


@dataclass(frozen=True)
class Drawing:
    """One picture wanted: its name in the store, its prompt, the seed of its noise."""

    name: str
    prompt: str
    seed: int


@dataclass(frozen=True)
class Style:
    """How pictures are drawn: sampler, side in pixels, weights' number format, pictures at a time."""

    sampler: SamplerPlan
    resolution: int
    precision: str
    batch_size: int


@dataclass(frozen=True)
class Drawn:
    """How many of the wanted pictures were there already, how many were made."""

    reused: int
    generated: int


def noise_seed(*parts: str | int) -> int:
    """A seed of 63 bits from what a picture is."""
    digest = hashlib.sha256("\0".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


class Artist:
    """A model on one worker, drawing what it is given."""

    def __init__(self, model: BaseModelRef, style: Style, store: PictureStore, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        self.style, self.store = style, store
        self.pipeline = load_pipeline(local_folder(model), style.precision, self.device)

    def draw(self, drawings: Sequence[Drawing]) -> int:
        """Draw and store a batch; returns how many there were."""
        for drawing, image in zip(drawings, draw_batch(self.pipeline, self.style, drawings), strict=True):
            self.store.put(drawing.name, image)
        return len(drawings)


def load_pipeline(folder: Path, precision: str, device: str) -> DiffusionPipeline:
    """A model ready to draw, silent."""
    import torch

    dtype = torch.bfloat16 if precision == "bf16" and device == "cuda" else torch.float32
    pipeline = open_family(folder).pipeline(folder, dtype).to(device)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def draw_batch(pipeline: Any, style: Style, drawings: Sequence[Drawing]) -> list[Image.Image]:
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


def draw_all(
    model: BaseModelRef,
    style: Style,
    store: PictureStore,
    wanted: Sequence[Drawing],
    workers: int,
    done: Callable[[int], None] = lambda count: None,
) -> Drawn:
    """Have every wanted picture in the store, drawing those that are missing.

    Args:
        workers: of the job; on a cluster without GPUs at least two artists share the cores.
        done: called with the number of pictures that are there by now.
    """
    there = store.names()
    missing = [d for d in wanted if d.name not in there]
    reused = len(wanted) - len(missing)
    done(reused)
    if not missing:
        return Drawn(reused, 0)
    count = reused
    for finished in _distribute(model, style, store, missing, workers):
        count += finished
        done(count)
    lost = {d.name for d in wanted} - store.names()
    if lost:
        raise RuntimeError(f"{store.url} lacks {len(lost)} pictures that were drawn, for example {min(lost)}")
    return Drawn(reused, len(missing))


def _distribute(
    model: BaseModelRef, style: Style, store: PictureStore, missing: Sequence[Drawing], workers: int
) -> Iterator[int]:
    resources = ray.cluster_resources()
    gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
    # Every artist gets something to do, also of a small order.
    artists_count = max(1, min(gpus or min(cpus, max(workers, 2)), len(missing)))
    batch_size = max(1, min(style.batch_size, len(missing) // artists_count))
    threads = max(1, cpus // artists_count)
    options: dict[str, Any] = {"num_cpus": 0 if gpus else threads, "num_gpus": 1 if gpus else 0}
    actor: Any = ray.remote(max_restarts=5, max_task_retries=5, **options)(Artist)
    artists = [actor.remote(model, style, store, threads) for _ in range(artists_count)]
    orders = (missing[i : i + batch_size] for i in range(0, len(missing), batch_size))
    try:
        first = zip(artists, islice(orders, len(artists)), strict=True)
        at_work = {artist.draw.remote(order): artist for artist, order in first}
        while at_work:
            (ready,), _ = ray.wait(list(at_work), num_returns=1)
            artist = at_work.pop(ready)
            yield ray.get(ready)
            for order in islice(orders, 1):
                at_work[artist.draw.remote(order)] = artist
    finally:
        for artist in artists:
            ray.kill(artist)
