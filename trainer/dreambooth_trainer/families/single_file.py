"""Converts a diffusers folder of Stable Diffusion to one safetensors file in the original layout of CompVis.

diffusers (`from_single_file`), ComfyUI and A1111 read this layout. diffusers has no function that writes it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_trainer.families.open_clip import to_open_clip
from dreambooth_trainer.models.files import local_weights

UNET_PREFIX = "model.diffusion_model."
VAE_PREFIX = "first_stage_model."
CLIP_PREFIX = "cond_stage_model.transformer.text_model."
OPEN_CLIP_PREFIX = "cond_stage_model.model."
SDXL_CLIP_PREFIX = "conditioner.embedders.0.transformer.text_model."
SDXL_OPEN_CLIP_PREFIX = "conditioner.embedders.1.model."
UNET_TOP = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
UNET_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
VAE_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}


def to_original_layout(folder: Path, target: Path) -> None:
    """Write a diffusers folder of Stable Diffusion 1 or 2 as one file, without changing number formats."""
    text = _text_encoder(folder / "text_encoder")
    if has_open_clip(folder):
        tensors = {OPEN_CLIP_PREFIX + name: tensor for name, tensor in to_open_clip(text).items()}
    else:
        tensors = {CLIP_PREFIX + name: tensor for name, tensor in text.items()}
    save_file({**_unet_and_vae(folder), **tensors}, target, metadata={"format": "pt"})


def sdxl_to_original_layout(folder: Path, target: Path) -> None:
    """Write a diffusers folder of Stable Diffusion XL as one file, without changing number formats."""
    first, second = _text_encoder(folder / "text_encoder"), _text_encoder(folder / "text_encoder_2")
    projection = second.pop("text_projection.weight").T.contiguous()
    tensors = {f"{SDXL_CLIP_PREFIX}{name}": tensor for name, tensor in first.items()}
    tensors |= {f"{SDXL_OPEN_CLIP_PREFIX}{name}": tensor for name, tensor in to_open_clip(second).items()}
    tensors[f"{SDXL_OPEN_CLIP_PREFIX}text_projection"] = projection
    save_file({**_unet_and_vae(folder), **tensors}, target, metadata={"format": "pt"})


def _unet_and_vae(folder: Path) -> dict[str, Tensor]:
    unet_config = json.loads((folder / "unet" / "config.json").read_text())
    vae_config = json.loads((folder / "vae" / "config.json").read_text())
    tensors: dict[str, Tensor] = {}
    for name, tensor in _weights(folder / "unet"):
        tensors[UNET_PREFIX + unet_key(name, unet_config)] = tensor
    for name, tensor in _weights(folder / "vae"):
        key = vae_key(name, blocks=len(vae_config["block_out_channels"]))
        is_projection = ".mid.attn_1." in key and key.endswith(".weight") and ".norm." not in key
        tensors[VAE_PREFIX + key] = tensor[:, :, None, None] if is_projection else tensor
    return tensors


def _text_encoder(folder: Path) -> dict[str, Tensor]:
    # Older versions of transformers wrote the prefix text_model. and, although they are not weights, position_ids.
    return {
        name.removeprefix("text_model."): tensor
        for name, tensor in _weights(folder)
        if not name.endswith("position_ids")
    }


def has_open_clip(folder: Path) -> bool:
    """Whether the text encoder of a diffusers folder is OpenCLIP's, as in Stable Diffusion 2, and not OpenAI's CLIP.

    The two differ in the activation function; OpenAI's CLIP uses an approximation of GELU.
    """
    config = json.loads((folder / "text_encoder" / "config.json").read_text())
    return config.get("hidden_act", "quick_gelu") != "quick_gelu"


def unet_key(name: str, config: dict[str, object]) -> str:
    """Original name of a U-Net weight.

    The original layout numbers all blocks consecutively, counts a downsampler as a block, has attention at index 1 of
    a block, and the upsampler last.

    Raises:
        ValueError: the weight has no counterpart in the original layout.
    """
    for prefix, original in UNET_TOP.items():
        if name.startswith(f"{prefix}."):
            return original + name[len(prefix) :]
    layers, up_types = config["layers_per_block"], config["up_block_types"]
    assert isinstance(layers, int)
    assert isinstance(up_types, list)
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", name):
        kind, index, rest = match[1], int(match[2]), match[3]
        return f"middle_block.{2 * index + (kind == 'attentions')}.{_resnet(rest) if kind == 'resnets' else rest}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)", name)
    if match is None:
        raise ValueError(f"U-Net weight {name!r} has no counterpart in the original layout")
    direction, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if kind == "downsamplers":
        return f"input_blocks.{(block + 1) * (layers + 1)}.0.op{rest.removeprefix('conv')}"
    if kind == "upsamplers":
        position = 2 if "CrossAttn" in up_types[block] else 1
        return f"output_blocks.{block * (layers + 1) + layers}.{position}.{rest}"
    block_name = f"input_blocks.{block * (layers + 1) + index + 1}" if direction == "down" else ""
    block_name = block_name or f"output_blocks.{block * (layers + 1) + index}"
    return f"{block_name}.0.{_resnet(rest)}" if kind == "resnets" else f"{block_name}.1.{rest}"


def vae_key(name: str, blocks: int) -> str:
    """Original name of an autoencoder weight. The original layout numbers up-blocks in reverse order."""
    name = name.replace("conv_norm_out", "norm_out").replace("conv_shortcut", "nin_shortcut")
    name = re.sub(r"mid_block\.resnets\.(\d)", lambda m: f"mid.block_{int(m[1]) + 1}", name)
    if "mid_block.attentions.0." in name:
        head, _, rest = name.partition("mid_block.attentions.0.")
        module, _, weight = rest.rpartition(".")
        return f"{head}mid.attn_1.{VAE_ATTENTION[module]}.{weight}"
    name = re.sub(r"down_blocks\.(\d+)\.resnets", r"down.\1.block", name)
    name = re.sub(r"down_blocks\.(\d+)\.downsamplers\.0", r"down.\1.downsample", name)
    name = re.sub(r"up_blocks\.(\d+)\.resnets", lambda m: f"up.{blocks - 1 - int(m[1])}.block", name)
    return re.sub(r"up_blocks\.(\d+)\.upsamplers\.0", lambda m: f"up.{blocks - 1 - int(m[1])}.upsample", name)


def _resnet(rest: str) -> str:
    module, _, weight = rest.rpartition(".")
    return f"{UNET_RESNET[module]}.{weight}"


def _weights(folder: Path) -> Iterator[tuple[str, Tensor]]:
    for path in local_weights(folder):
        yield from load_file(path).items()
