"""Reads facts about a base model from its configuration, without loading weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dreambooth_api.errors import UserError, ValidationIssue

UNET_CONFIG, VAE_CONFIG = "unet/config.json", "vae/config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
CONFIGS = (UNET_CONFIG, VAE_CONFIG, SCHEDULER_CONFIG)
"""The files that this module reads."""
PREDICTION_TYPES = ("epsilon", "v_prediction")


def native_resolution(folder: Path) -> int | None:
    """Side length of the images that a diffusers pipeline was trained on, in pixels; None if it is not configured."""
    sample_size = _read_config(folder, UNET_CONFIG).get("sample_size")
    if not sample_size:
        return None
    side = sample_size if isinstance(sample_size, int) else min(sample_size)
    return side * _vae_scale_factor(folder)


def check_scheduler(folder: Path) -> None:
    """Reject a model that was trained to predict something else than noise or velocity.

    Raises:
        UserError: the prediction type is not supported, or the scheduler's configuration cannot be read.
    """
    prediction_type = _read_config(folder, SCHEDULER_CONFIG).get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        rule = f"{SCHEDULER_CONFIG}: prediction_type {prediction_type!r} is not supported"
        remedy = f"use a model with one of: {', '.join(PREDICTION_TYPES)}"
        raise UserError(ValidationIssue("spec.model.id", str(folder), rule, remedy))


def _vae_scale_factor(folder: Path) -> int:
    """Pixels per latent element along a side: each block of the autoencoder but the last halves the image."""
    return 2 ** (len(_read_config(folder, VAE_CONFIG)["block_out_channels"]) - 1)


def _read_config(folder: Path, name: str) -> dict[str, Any]:
    try:
        config = json.loads((folder / name).read_text())
    except (OSError, ValueError):
        config = None
    if not isinstance(config, dict):
        remedy = "set the folder of a complete diffusers model"
        raise UserError(ValidationIssue("spec.model.id", str(folder), f"{name} cannot be read", remedy))
    return config
