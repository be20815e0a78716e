"""The number format in which a model's weights are stored."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors import safe_open

from dreambooth_trainer.models.files import local_weights

# By the name in the headers of safetensors files.
LOW_PRECISION = {"F16": torch.float16, "BF16": torch.bfloat16}
INTEGERS = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}


def stored_dtype(folder: Path) -> torch.dtype:
    """The dtype of a model's floating-point weights, from the headers of its safetensors files.

    fp32 represents weights in several formats exactly, so it is the dtype of a model that mixes them. Without weights,
    as in a plan for a model on the Hub, it is that of the configuration. Modules of diffusers have none there.
    """
    found: set[str] = set()
    for path in local_weights(folder):
        with safe_open(path, "pt") as file:
            found |= {file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118 - no mapping
    if not found:
        return _configured_dtype(folder)
    formats = found - INTEGERS
    return LOW_PRECISION.get(formats.pop(), torch.float32) if len(formats) == 1 else torch.float32


def _configured_dtype(folder: Path) -> torch.dtype:
    config = json.loads((folder / "config.json").read_text())
    name = config.get("dtype") or config.get("torch_dtype")  # since transformers 5, and before
    return {"bfloat16": torch.bfloat16, "float16": torch.float16}.get(name, torch.float32)
