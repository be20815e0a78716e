"""The pipeline of a published model, on this machine's device."""

from __future__ import annotations

from pathlib import Path

from dreambooth_trainer.cluster.hardware import local_devices
from dreambooth_trainer.families.registry import local_folder
from dreambooth_trainer.planning.precision import default_precision
from dreambooth_trainer.sampling.pipeline import LoadedPipeline, SamplingConfig, load_pipeline
from dreambooth_trainer.store.published import open_published


def open_pipeline(folder: Path, device: str | None = None) -> tuple[LoadedPipeline, str]:
    """Load the model in a folder of a job or of a published model. The base model of an adapter is loaded as well.

    Args:
        device: cuda or cpu; None for cuda if it works here.

    Returns:
        The pipeline with its settings, and a note about the device or an empty string.

    Raises:
        UserError: the folder contains no published model, or only a single file.
    """
    loaded, _, note = open_with_settings(folder, device)
    return loaded, note


def open_with_settings(folder: Path, device: str | None = None) -> tuple[LoadedPipeline, SamplingConfig, str]:
    """As `open_pipeline`, with the job's settings of image generation."""
    published = open_published(folder)
    devices, note = local_devices()
    precision = default_precision(gpu=bool(devices), bf16=all(found.bf16 for found in devices))
    config = SamplingConfig(published.sampler, published.resolution, precision, published.sampling_batch_size)
    second = published.model.super_resolution
    loaded = load_pipeline(
        local_folder(published.model),
        precision,
        device or ("cuda" if devices else "cpu"),
        published.adapter,
        second and local_folder(second),
    )
    return loaded, config, note or ""
