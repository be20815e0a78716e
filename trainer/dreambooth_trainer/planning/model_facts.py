"""Reads facts about a base model from its configuration and file headers, without loading weights."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from safetensors import safe_open

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.models.files import local_weights
from dreambooth_trainer.planning.memory import ModelSize

UNET_CONFIG, VAE_CONFIG = "unet/config.json", "vae/config.json"
SCHEDULER_CONFIG = "scheduler/scheduler_config.json"
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


def model_size(folder: Path, *, resolution: int, train_text_encoder: bool, lora_rank: int | None) -> ModelSize:
    """Size of a diffusers pipeline.

    Args:
        lora_rank: rank of the adapters if only they are trained, else None.
    """
    unet, text = _count(folder / "unet"), _count(folder / "text_encoder")
    config = _read_config(folder, UNET_CONFIG)
    loaded = unet + (text if train_text_encoder else 0)
    parts = ("unet", "text_encoder") if train_text_encoder else ("unet",)
    adapters = None if lora_rank is None else sum(_count_adapters(folder / part, lora_rank) for part in parts)
    return ModelSize(
        trainable=loaded if adapters is None else adapters,
        frozen=0 if adapters is None else loaded,
        total=unet + text + _count(folder / "vae"),
        latent_side=resolution // _vae_scale_factor(folder),
        width=config["block_out_channels"][0],
    )


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


def _shapes(folder: Path) -> list[list[int]]:
    shapes: list[list[int]] = []
    for path in local_weights(folder):
        with safe_open(path, framework="numpy") as file:
            shapes += [list(file.get_slice(name).get_shape()) for name in file.keys()]  # noqa: SIM118 - no mapping
    return shapes


def _count(folder: Path) -> int:
    return sum(math.prod(shape) for shape in _shapes(folder))


def _count_adapters(folder: Path, rank: int) -> int:
    # Nearly every matrix gets an adapter; vectors (norms, biases) do not.
    return sum(rank * (shape[0] + shape[1]) for shape in _shapes(folder) if len(shape) >= 2)
