"""Stage 2: trains the autoencoder, sprites [3, 32, 32] <-> latents [4, 16, 16].

The downsampling factor is two. A factor of four with 16 channels gives blurred images (24.9 dB instead of more than
27 dB), and latents from which a small denoiser does not learn coherent shapes.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from diffusers import AutoencoderKL
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.functional import l1_loss, mse_loss

from dreambooth_trainer.sprites.training import Checkpoint, make_optimizer, train


@dataclass(frozen=True)
class VaeConfig:
    """Size and training settings of the autoencoder."""

    channels: tuple[int, ...] = (16, 48)
    latent_channels: int = 4
    steps: int = 1_400
    batch: int = 16
    rate: float = 2e-3
    kl_weight: float = 1e-4
    """Per latent dimension. It is small and only prevents the posterior's variance from collapsing to zero."""


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """Build an `AutoencoderKL` without attention, because all structure of the images is local."""
    levels = len(config.channels)
    return AutoencoderKL(
        # diffusers annotates these as tuples of length one.
        down_block_types=cast("Any", ("DownEncoderBlock2D",) * levels),
        up_block_types=cast("Any", ("UpDecoderBlock2D",) * levels),
        block_out_channels=cast("Any", config.channels),
        layers_per_block=1,
        latent_channels=config.latent_channels,
        norm_num_groups=8,
        sample_size=32,
        mid_block_add_attention=False,
        scaling_factor=1.0,
    )


def to_tensor(images: NDArray[np.uint8] | torch.Tensor) -> torch.Tensor:
    """uint8 [N, 32, 32, 3] -> float [N, 3, 32, 32] in -1..1."""
    pixels = torch.as_tensor(images)
    return pixels.permute(0, 3, 1, 2).contiguous().float() / 127.5 - 1


def posterior_of(vae: AutoencoderKL, pixels: torch.Tensor) -> DiagonalGaussianDistribution:
    """Encode [N, 3, 32, 32] to a distribution over [N, 4, 16, 16]."""
    return cast("Any", vae.encode(pixels)).latent_dist


def decode(vae: AutoencoderKL, latents: torch.Tensor) -> torch.Tensor:
    """Decode latents [N, 4, 16, 16] to images [N, 3, 32, 32]."""
    return cast("Any", vae.decode(cast("Any", latents))).sample


def train_vae(images: NDArray[np.uint8], work: Path, config: VaeConfig, seed: int, console: Console) -> AutoencoderKL:
    """Train on `images`, resuming from `work/vae.ckpt`, and standardize the latents."""
    torch.manual_seed(seed)
    vae = build_vae(config)
    optimizer, schedule = make_optimizer(list(vae.parameters()), config.rate, config.steps)
    checkpoint = Checkpoint(work / "vae.ckpt", vae=vae, optimizer=optimizer, schedule=schedule)

    def loss_of(generator: torch.Generator) -> tuple[torch.Tensor, str]:
        loss, error = _vae_loss(vae, images, config, generator)
        return loss, f"psnr {10 * math.log10(4 / error):.2f} dB"

    train("autoencoder", checkpoint, (optimizer, schedule), config.steps, seed, console, loss_of)
    vae.eval()
    standardize_latents(vae, to_tensor(images[:2000]))
    return vae


def _vae_loss(
    vae: AutoencoderKL, images: NDArray[np.uint8], config: VaeConfig, generator: torch.Generator
) -> tuple[torch.Tensor, float]:
    """The loss of a batch, and the mean squared error of its pixels, which are -1..1."""
    index = torch.randint(len(images), (config.batch,), generator=generator).numpy()
    pixels = to_tensor(images[index])
    posterior = posterior_of(vae, pixels)
    reconstruction = decode(vae, posterior.sample(generator))
    squared = mse_loss(reconstruction, pixels)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    return l1_loss(reconstruction, pixels) + squared + config.kl_weight * kl, squared.item()


@torch.no_grad()
def standardize_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Shift each latent channel to mean 0, and scale all to standard deviation 1, as the noise schedule expects.

    The map is affine, so it is folded into the two 1x1 convolutions, and decode(encode(x)) does not change. The
    `scaling_factor` of a pipeline cannot shift.
    """
    posterior = posterior_of(vae, pixels)
    channels = posterior.mean.shape[1]
    mean, deviation = posterior.mean.mean(dim=(0, 2, 3)), posterior.mean.std()
    into, out = cast("nn.Conv2d", vae.quant_conv), cast("nn.Conv2d", vae.post_quant_conv)
    into_bias, out_bias = cast("nn.Parameter", into.bias), cast("nn.Parameter", out.bias)
    into.weight[:channels] /= deviation
    into_bias[:channels] = (into_bias[:channels] - mean) / deviation
    into_bias[channels:] -= 2 * deviation.log()
    out_bias += out.weight[:, :, 0, 0] @ mean
    out.weight *= deviation


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: NDArray[np.uint8], path: Path) -> None:
    """Write the posterior of each image: `mean` and `std`, float16 [N, 4, 16, 16]."""
    means: list[torch.Tensor] = []
    deviations: list[torch.Tensor] = []
    for first in range(0, len(images), 500):
        posterior = posterior_of(vae, to_tensor(images[first : first + 500]))
        means.append(posterior.mean.half())
        deviations.append(posterior.std.half())
    save_file({"mean": torch.cat(means), "std": torch.cat(deviations)}, path)


def load_latents(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Read `mean` and `std` of each image, float16 [N, 4, 16, 16] each."""
    stored = load_file(path)
    return stored["mean"], stored["std"]


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of decode(encode(x)) in dB."""
    pixels = to_tensor(images)
    reconstruction = decode(vae, posterior_of(vae, pixels).mean).clamp(-1, 1)
    return 10 * math.log10(4 / mse_loss(reconstruction, pixels).item())
