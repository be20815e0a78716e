"""Converts a LoRA adapter of diffusers to the layout of kohya's sd-scripts, which ComfyUI and AUTOMATIC1111 read.

That layout has one scale (`alpha`) per layer. User interfaces show its metadata: `ss_*` keys of sd-scripts, and
`modelspec.*` keys of Stability AI's Model Metadata Standard.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_kohya
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_trainer.families.base import AdapterInfo

# Where diffusers' save_lora_weights stores PEFT's configuration, as JSON with keys such as unet.lora_alpha.
CONFIG_KEY = "lora_adapter_metadata"


def to_kohya_layout(
    adapter: Path,
    target: Path,
    metadata: Mapping[str, str],
    text_encoders: Mapping[str, tuple[str, str]],
    unet_layer: Callable[[str], str] = lambda layer: layer,
) -> None:
    """Write the adapter file of diffusers in kohya's layout, without changing number formats.

    Args:
        metadata: entries to add to the metadata of the file.
        text_encoders: prefix in the file, and name of the module, by prefix in diffusers' conversion.
        unet_layer: the name in the file of a layer of the U-Net.
    """
    with safe_open(adapter, "pt") as file:
        config: dict[str, Any] = json.loads(file.metadata()[CONFIG_KEY])
        weights: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    prefixes = {"lora_unet_": ("lora_unet_", "unet"), **text_encoders}
    flat = {_flat(layer): _flat(unet_layer(layer)) for layer in _unet_layers(weights)}
    layers: dict[str, Tensor] = {}
    for name, value in convert_state_dict_to_kohya(weights).items():
        layer, _, kind = name.partition(".")
        prefix = next(prefix for prefix in prefixes if layer.startswith(prefix))
        renamed, component = prefixes[prefix]
        rest = layer.removeprefix(prefix)
        # diffusers assumes that alpha equals the rank.
        alpha = torch.tensor(float(config[f"{component}.lora_alpha"])) if kind == "alpha" else value
        layers[f"{renamed}{flat.get(rest, rest) if component == 'unet' else rest}.{kind}"] = alpha
    component = next(name for name in ("unet", "text_encoder", "text_encoder_2") if f"{name}.r" in config)
    rank, alpha = config[f"{component}.r"], config[f"{component}.lora_alpha"]
    network = {
        "ss_network_module": "networks.lora",
        "ss_network_dim": f"{rank}",
        "ss_network_alpha": f"{alpha}",
        # sd-scripts trains 3x3 convolutions, as in resnets, with a rank of their own.
        "ss_network_args": json.dumps({"conv_dim": rank, "conv_alpha": alpha}),
    }
    save_file(layers, target, metadata={"format": "pt", **network, **metadata})


def _unet_layers(weights: Iterable[str]) -> set[str]:
    """Names of the layers of the U-Net that have adapters."""
    return {name.removeprefix("unet.").partition(".lora_")[0] for name in weights if name.startswith("unet.")}


def _flat(name: str) -> str:
    return name.replace(".", "_")


def kohya_metadata(info: AdapterInfo, *, version: int, prediction_type: str) -> dict[str, str]:
    """Metadata of an adapter for Stable Diffusion.

    Args:
        version: major version of Stable Diffusion, 1 or 2.
        prediction_type: of the noise scheduler, as diffusers names it.
    """
    is_velocity = prediction_type == "v_prediction"
    architecture = "stable-diffusion-v1"
    if version == 2:
        architecture = "stable-diffusion-v2-768-v" if is_velocity else "stable-diffusion-v2-512"
    return {
        **_metadata(info, architecture),
        "ss_base_model_version": f"sd_v{version}",
        "ss_v2": str(version > 1),
        "modelspec.prediction_type": "v" if is_velocity else "epsilon",
    }


def sdxl_metadata(info: AdapterInfo) -> dict[str, str]:
    """Metadata of an adapter for Stable Diffusion XL."""
    return {
        **_metadata(info, "stable-diffusion-xl-v1-base"),
        "ss_base_model_version": "sdxl_base_v1-0",
        "ss_v2": "False",
    }


def _metadata(info: AdapterInfo, architecture: str) -> dict[str, str]:
    return {
        "ss_sd_model_name": info.base_model,
        "ss_output_name": info.name,
        "ss_resolution": f"({info.resolution}, {info.resolution})",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.title": info.name,
        "modelspec.trigger_phrase": info.instance_prompt,
        "modelspec.resolution": f"{info.resolution}x{info.resolution}",
    }
