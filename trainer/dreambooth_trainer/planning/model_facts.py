"""What is to be known of a base model before anything runs; reads headers, loads no weights."""

from __future__ import annotations

import json
from pathlib import Path

from safetensors import safe_open

from dreambooth_trainer.models.files import local_weights
from dreambooth_trainer.planning.memory import ModelSize


def model_size(folder: Path, *, resolution: int, train_text_encoder: bool, lora_rank: int | None) -> ModelSize:
    """Weights of a diffusers folder, counted from the files' headers.

    Args:
        lora_rank: of the adapters where only they learn, else None.
    """
    unet, text = _count(folder / "unet"), _count(folder / "text_encoder")
    config = json.loads((folder / "unet" / "config.json").read_text())
    vae = json.loads((folder / "vae" / "config.json").read_text())
    loaded = unet + (text if train_text_encoder else 0)
    parts = ("unet", "text_encoder") if train_text_encoder else ("unet",)
    adapters = None if lora_rank is None else sum(_adapter_weights(folder / part, lora_rank) for part in parts)
    return ModelSize(
        trainable=loaded if adapters is None else adapters,
        frozen=0 if adapters is None else loaded,
        whole=unet + text + _count(folder / "vae"),
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
    total = 0
    for shape in _shapes(folder):
        size = 1
        for side in shape:
            size *= side
        total += size
    return total


def _adapter_weights(folder: Path, rank: int) -> int:
    # Nearly every matrix is adaptable; vectors (norms, biases) are not.
    return sum(rank * (shape[0] + shape[1]) for shape in _shapes(folder) if len(shape) >= 2)
