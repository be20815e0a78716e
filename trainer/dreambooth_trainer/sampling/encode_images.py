"""Encodes class images on all workers. Latents that another job has stored are checked and used."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.images.augment import resized
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.latent_store import LatentStore

if TYPE_CHECKING:
    from dreambooth_trainer.families.base import Stage

BATCH_SIZE = 16
"""Images per call. The autoencoder encodes one after another."""


def latent_store(images: ImageStore, stage: str = "") -> LatentStore:
    """The latents of the images of a store, as a stage of the model uses them."""
    return LatentStore(f"{images.url}/latents{stage and f'-{stage}'}")


def encode_class_images(
    pool: WorkerPool,
    stage: Plan,
    images: ImageStore,
    names: Sequence[str],
    side: int,
    on_progress: Callable[[int], None],
) -> list[str]:
    """Store the latents of all images, on all workers; returns the names of missing and damaged images.

    Args:
        side: side length of the images in pixels. The stage encodes them at its own resolution.
        on_progress: called with the number of images that have been checked or encoded.
    """
    size = max(1, min(BATCH_SIZE, len(names) // pool.size().workers))
    batches = ((stage, images, names[start : start + size], side) for start in range(0, len(names), size))
    done, unusable = 0, list[str]()
    for count, lost in pool.map(encode_batch, batches, calls_per_worker=1):
        done += count
        unusable += lost
        on_progress(done)
    return unusable


def encode_batch(stage: Plan, images: ImageStore, names: Sequence[str], side: int) -> tuple[int, list[str]]:
    """Encode the images of which the store has no intact latents. Runs on a worker, on its GPU if it has one.

    Returns:
        The number of images, and the names of those that are missing or damaged. Damaged files are deleted.
    """
    latents, folder = latent_store(images, stage.stage), local_folder(stage.model)
    shapes = open_family(folder).image_shapes(folder, stage.resolution)
    unusable: list[str] = []
    for name in names:
        if latents.read(name, shapes) is not None:
            continue
        image = images.get_or_delete(name, side)
        if image is None:
            unusable.append(name)
            continue
        encoded = cached_image_encoder(folder, work_device()).encode_images([resized(image, stage.resolution)])
        latents.write(name, {key: tensor[0].float().cpu() for key, tensor in encoded.items()})
    return len(names), unusable


@functools.lru_cache(maxsize=1)
def cached_image_encoder(folder: Path, device: str) -> Stage:
    """What encodes images with a base model. Other models of this process are freed: there may be no memory for two."""
    from dreambooth_trainer.sampling.generate import unload_models

    unload_models()
    family = open_family(folder)
    stage = family.open(folder, family.image_encoders)
    for module in stage.modules.values():
        module.to(device)
    return stage
