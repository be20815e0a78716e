"""Reads facts about a base model from its configuration, without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec

VAE_CONFIG, SCHEDULER_CONFIG = "vae/config.json", "scheduler/scheduler_config.json"
PREDICTION_TYPES = ("epsilon", "v_prediction")
FLOW_MATCHING_SCHEDULER = "FlowMatchEulerDiscreteScheduler"
# Transformers of these families denoise patches of 2 x 2 latent elements.
PATCH_SIZE = 2
MIN_SNR_FIELD = "spec.training.minSnrGamma"
SAMPLER_FIELD = "spec.priorPreservation.sampler.scheduler"
RESOLUTION_FIELD = "spec.training.resolution"


def has_configs(folder: Path) -> bool:
    """Whether the files that this module reads are in a folder."""
    names = (denoiser_config(folder), SCHEDULER_CONFIG, *([] if is_pixel_space(folder) else [VAE_CONFIG]))
    return all((folder / name).is_file() for name in names)


def denoiser_config(folder: Path) -> str:
    """The name of the configuration file of a model's denoiser."""
    return "transformer/config.json" if (folder / "transformer").is_dir() else "unet/config.json"


def native_resolution(folder: Path) -> int | None:
    """Side length of the images that a diffusers pipeline was trained on, in pixels; None if it is not configured."""
    sample_size = read_config(folder, denoiser_config(folder)).get("sample_size")
    if not sample_size:
        return None
    side = sample_size if isinstance(sample_size, int) else min(sample_size)
    return side * _vae_scale_factor(folder)


def is_flow_matching(folder: Path) -> bool:
    """Whether a model was trained by flow matching, and not with a DDPM noise schedule."""
    return read_config(folder, SCHEDULER_CONFIG).get("_class_name") == FLOW_MATCHING_SCHEDULER


def is_pixel_space(folder: Path) -> bool:
    """Whether a model denoises pixels, and has no autoencoder."""
    return not (folder / "vae").is_dir()


def check_model(folder: Path, spec: JobSpec) -> None:
    """Reject a model whose scheduler is not supported, and settings that do not apply to the model.

    Raises:
        UserError: with all issues.
    """
    check_scheduler(folder)
    if not is_flow_matching(folder):
        return
    training, scheduler = spec.training, spec.prior_preservation.sampler.scheduler
    issues: list[ValidationIssue] = []
    if training.min_snr_gamma is not None:
        rule = "does not apply to a model with flow matching, which has no DDPM noise schedule"
        issues.append(ValidationIssue(MIN_SNR_FIELD, training.min_snr_gamma, rule, "remove it"))
    if scheduler != "Default":
        rule = f"does not apply to a model with flow matching, which is sampled with {FLOW_MATCHING_SCHEDULER}"
        issues.append(ValidationIssue(SAMPLER_FIELD, scheduler, rule, "remove it, or set Default"))
    multiple = PATCH_SIZE * _vae_scale_factor(folder)
    if training.resolution is not None and training.resolution % multiple:
        rule = f"is not a multiple of {multiple}, the side length of this model's patches in pixels"
        nearest = max(multiple, training.resolution // multiple * multiple)
        issues.append(ValidationIssue(RESOLUTION_FIELD, training.resolution, rule, f"set {nearest}"))
    if issues:
        raise UserError(issues)


def check_scheduler(folder: Path) -> None:
    """Reject a model that was trained to predict something else than noise or velocity.

    Raises:
        UserError: the prediction type is not supported, or the scheduler's configuration cannot be read.
    """
    prediction_type = read_config(folder, SCHEDULER_CONFIG).get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        rule = f"{SCHEDULER_CONFIG}: prediction_type {prediction_type!r} is not supported"
        remedy = f"use a model with one of: {', '.join(PREDICTION_TYPES)}"
        raise UserError(ValidationIssue("spec.model.id", str(folder), rule, remedy))


def _vae_scale_factor(folder: Path) -> int:
    """Pixels per latent element along a side: each block of the autoencoder but the last halves the image.

    1 for a model without an autoencoder.
    """
    if is_pixel_space(folder):
        return 1
    return 2 ** (len(read_config(folder, VAE_CONFIG)["block_out_channels"]) - 1)


def read_config(folder: Path, name: str) -> dict[str, Any]:
    """A configuration file of a model.

    Raises:
        UserError: it cannot be read.
    """
    try:
        config = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        remedy = "set the folder of a complete diffusers model"
        raise UserError(ValidationIssue("spec.model.id", str(folder), f"{name} cannot be read", remedy))
    return config
