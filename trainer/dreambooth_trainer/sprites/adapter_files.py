"""The files of an IP-Adapter as diffusers reads them: `ip_adapter.safetensors`, and `image_encoder/` beside it."""

from collections.abc import Iterator
from pathlib import Path

import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import save_file
from torch import nn
from transformers import CLIPVisionModelWithProjection

from dreambooth_api.imageprompt import WEIGHTS_FILE
from dreambooth_trainer.sprites.publish import clean_config

IMAGE_TOKENS = 4
"""Prompt tokens per image. diffusers assumes this number for an adapter with a linear projection."""
ENCODER_FOLDER = "image_encoder"

State = dict[str, dict[str, torch.Tensor]]
"""`image_proj` and `ip_adapter`, each with its tensors: what `load_ip_adapter` takes."""


def initial_adapter(unet: UNet2DConditionModel, features: int) -> State:
    """An untrained adapter for images of `features` numbers each. Keys and values start as those for the text."""
    width = int(unet.config["cross_attention_dim"])
    projection = nn.Linear(features, IMAGE_TOKENS * width)
    norm = nn.LayerNorm(width)
    image_proj = {
        **{f"proj.{name}": value.detach() for name, value in projection.named_parameters()},
        **{f"norm.{name}": value.detach() for name, value in norm.named_parameters()},
    }
    ip_adapter: dict[str, torch.Tensor] = {}
    for number, attention in _cross_attentions(unet):
        for part in ("k", "v"):
            weight = attention.get_submodule(f"to_{part}").get_parameter("weight")
            ip_adapter[f"{number}.to_{part}_ip.weight"] = weight.detach().clone()
    return {"image_proj": image_proj, "ip_adapter": ip_adapter}


def adapter_parameters(unet: UNet2DConditionModel) -> dict[str, nn.Parameter]:
    """The parameters of the one adapter that is loaded into `unet`, by their names in `ip_adapter.safetensors`."""
    projection = unet.get_submodule("encoder_hid_proj.image_projection_layers.0")
    found = {
        f"image_proj.{name.replace('image_embeds', 'proj')}": value for name, value in projection.named_parameters()
    }
    for number, attention in _cross_attentions(unet):
        for part in ("k", "v"):
            layer = f"to_{part}_ip"
            found[f"ip_adapter.{number}.{layer}.weight"] = attention.get_parameter(f"processor.{layer}.0.weight")
    return found


def save_adapter(unet: UNet2DConditionModel, encoder: CLIPVisionModelWithProjection, folder: Path) -> None:
    """Write the adapter of `unet` and its image encoder as float16."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: value.detach().half().contiguous() for name, value in adapter_parameters(unet).items()}
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    encoder.half().save_pretrained(folder / ENCODER_FOLDER)
    clean_config(folder / ENCODER_FOLDER / "config.json")


def _cross_attentions(unet: UNet2DConditionModel) -> Iterator[tuple[int, nn.Module]]:
    """The attentions over the prompt, with their numbers in IP-Adapter's layout: the odd ones."""
    names = [name.removesuffix(".processor") for name in unet.attn_processors if "attn2" in name]
    for index, name in enumerate(names):
        yield 2 * index + 1, unet.get_submodule(name)
