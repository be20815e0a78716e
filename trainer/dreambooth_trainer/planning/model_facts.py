"""Reads the size of a base model from file headers, without loading weights."""

from __future__ import annotations

import json
import math
from pathlib import Path

from safetensors import safe_open

from dreambooth_trainer.models.files import local_weights
from dreambooth_trainer.planning.memory import ModelSize


def model_size(folder: Path, *, resolution: int, train_text_encoder: bool, lora_rank: int | None) -> ModelSize:
    """Size of a diffusers pipeline.

    Args:
        lora_rank: rank of the adapters if only they are trained, else None.
    """
    unet, text = _count(folder / "unet"), _count(folder / "text_encoder")
    config = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    loaded = unet + (text if train_text_encoder else 0)
    parts = ("unet", "text_encoder") if train_text_encoder else ("unet",)
    adapters = None if lora_rank is None else sum(_count_adapters(folder / part, lora_rank) for part in parts)
    return ModelSize(
        trainable=loaded if adapters is None else adapters,
        frozen=0 if adapters is None else loaded,
        total=unet + text + _count(folder / "vae"),
        latent_side=resolution // 2 ** (len(vae["block_out_channels"]) - 1),
        width=config["block_out_channels"][0],
    )


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
