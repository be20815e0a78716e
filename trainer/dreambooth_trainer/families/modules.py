"""Opening and saving of the modules of a diffusers folder, as all families do it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDPMScheduler
from torch import nn
from transformers import PreTrainedModel

from dreambooth_trainer.families.autoencoder import in_tiles
from dreambooth_trainer.families.stored_dtype import stored_dtype
from dreambooth_trainer.models.files import INDEX


def open_module(module_class: Any, folder: Path, *, empty: bool, dtype: torch.dtype = torch.float32) -> nn.Module:
    """A module on the CPU.

    Args:
        module_class: of diffusers or transformers.
        empty: build the module from its configuration, on torch's default device, and read no weights.
        dtype: of all weights.
    """
    if not empty:
        module = module_class.from_pretrained(folder, dtype=dtype, use_safetensors=True)
    elif issubclass(module_class, PreTrainedModel):
        module = module_class(cast("Any", module_class.config_class).from_pretrained(folder))
    else:
        module = module_class.from_config(module_class.load_config(folder))
    if next(module.parameters()).dtype != dtype:  # transformers builds a module in the dtype of its configuration
        nn.Module.to(module, dtype)  # diffusers' own method logs a warning
    return in_tiles(module) if isinstance(module, AutoencoderKL) else module


def without_dropout(module: nn.Module) -> None:
    """Disable the dropout of a module whose weights are not trained; its configuration stays.

    New tokens pass through such a module in training mode, which gradient checkpointing needs.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Dropout):
            layer.p = 0.0
        elif isinstance(getattr(layer, "dropout", None), float):  # as T5's attention
            vars(layer)["dropout"] = 0.0


def has_module(folder: Path, name: str) -> bool:
    """Whether a diffusers folder has a module, according to its index."""
    kind: object = json.loads((folder / INDEX).read_text()).get(name)
    return isinstance(kind, list) and None not in kind


def open_ddpm_scheduler(folder: Path) -> DDPMScheduler:
    """The noise scheduler of a diffusers folder, with a DDPM schedule and on the CPU."""
    with torch.device("cpu"):
        return cast("DDPMScheduler", DDPMScheduler.from_pretrained(folder / "scheduler"))


def save_pipeline(
    load: Callable[..., Any], base: Path, names: Mapping[str, Any], modules: Mapping[str, nn.Module], target: Path
) -> None:
    """Write a pipeline with some modules replaced, in the number formats in which the base model stores them.

    Args:
        load: loads the pipeline of a folder in a dtype for each module. It gets the modules that it need not load.
        names: names of all modules.
        modules: those to replace. They are cast in place.
    """
    dtypes = {name: stored_dtype(base / name) for name in names if has_module(base, name)}
    given = {name: module.to(dtypes[name]) for name, module in modules.items()}
    load(base, dtypes, **given).save_pretrained(target, safe_serialization=True)
    for path in (target / INDEX, *target.glob("*/config.json")):
        settings: dict[str, object] = json.loads(path.read_text())
        # diffusers writes the path of the base model on this machine.
        if settings.pop("_name_or_path", None) is not None:
            path.write_text(json.dumps(settings, indent=2) + "\n")
