"""Latents of a KL autoencoder, as the latent families use them.

Legend: N images, C latent channels, h x w latent size.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from diffusers import AutoencoderKL
from torch import Tensor

from dreambooth_trainer.families.base import Tensors

if TYPE_CHECKING:
    from PIL import Image

# The autoencoder encodes and decodes larger images in tiles of this side length, to bound its memory.
TILE_PIXELS = 768
MEAN, STD = "latent_mean", "latent_std"


def encode_to_latents(vae: Any, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    """Mean and standard deviation of the scaled latents of RGB images, each [N, C, h, w]."""
    pixels = torch.from_numpy(np.stack([np.asarray(image.convert("RGB")) for image in images]))
    pixels = pixels.permute(0, 3, 1, 2).to(vae.device, vae.dtype) / 127.5 - 1
    with torch.no_grad():
        latents = vae.encode(pixels).latent_dist
    scale, shift = vae.config.scaling_factor, vae.config.shift_factor or 0.0
    return {MEAN: (latents.mean - shift) * scale, STD: latents.std * scale}


def sample_latents(examples: Tensors, noise: Tensor) -> Tensor:
    """Sample from the latent distributions, [N, C, h, w], as `AutoencoderKL.encode` would.

    Args:
        noise: standard normal, [N, C, h, w].
    """
    return torch.addcmul(examples[MEAN], examples[STD], noise)


def latent_shapes(folder: Path, side: int) -> dict[str, tuple[int, ...]]:
    """Shapes [C, h, w] of what `encode_to_latents` returns for one image, from the configuration of a diffusers folder.

    Args:
        side: side length of the image in pixels.
    """
    config: dict[str, Any] = json.loads((folder / "vae" / "config.json").read_text())
    latent_side = side // pixels_per_latent(folder)
    shape = config["latent_channels"], latent_side, latent_side
    return {MEAN: shape, STD: shape}


def pixels_per_latent(folder: Path) -> int:
    """Pixels per latent element along a side: each block of the autoencoder but the last halves the image."""
    config: dict[str, Any] = json.loads((folder / "vae" / "config.json").read_text())
    return 2 ** (len(config["block_out_channels"]) - 1)


def in_tiles(vae: AutoencoderKL) -> AutoencoderKL:
    """Let an autoencoder process large images in tiles, and one image at a time."""
    vae.enable_tiling()
    vae.enable_slicing()
    vae.tile_sample_min_size = TILE_PIXELS
    vae.tile_latent_min_size = TILE_PIXELS // 2 ** (len(vae.config["block_out_channels"]) - 1)
    return vae


def prepare_decoder(vae: AutoencoderKL, dtype: torch.dtype) -> None:
    """Let the autoencoder of a pipeline decode in tiles, and in fp32 if its configuration requires that.

    Args:
        dtype: of the latents, which is that of the denoiser.
    """
    in_tiles(vae)
    if dtype == torch.float32 or not vae.config["force_upcast"]:
        return
    vae.float()
    for first in (vae.post_quant_conv, vae.decoder):
        if first is not None:
            first.register_forward_pre_hook(lambda module, inputs: (inputs[0].float(), *inputs[1:]))
