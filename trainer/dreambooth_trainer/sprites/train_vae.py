"""Stage 2: the autoencoder, sprites [3, 32, 32] <-> latents [16, 8, 8].

A factor of four leaves 64 positions, where the UNet can afford wide channels; 16 channels keep outlines and spots.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from rich.console import Console
from safetensors.torch import load_file, save_file
from torch.nn.functional import l1_loss, mse_loss

from .training import Checkpoint, make_optimizer, progress, step_generator


@dataclass(frozen=True)
class VaeConfig:
    """Size and schedule of the autoencoder."""

    channels: tuple[int, ...] = (16, 32, 64)
    latent_channels: int = 16
    steps: int = 1_600
    batch: int = 32
    rate: float = 2e-3
    kl_weight: float = 1e-3
    """Per latent dimension; small: only keeps the posterior from collapsing to points."""


def build_vae(config: VaeConfig) -> AutoencoderKL:
    """A plain `AutoencoderKL`; no attention, because zones and outlines are local."""
    levels = len(config.channels)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=config.channels,
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


def train_vae(images: NDArray[np.uint8], work: Path, config: VaeConfig, seed: int, console: Console) -> AutoencoderKL:
    """Train on `images`, resuming from `work/vae.ckpt`; return the autoencoder with standardised latents."""
    torch.manual_seed(seed)
    vae = build_vae(config)
    optimizer, schedule = make_optimizer(list(vae.parameters()), config.rate, config.steps)
    checkpoint = Checkpoint(work / "vae.ckpt", vae=vae, optimizer=optimizer, schedule=schedule)
    start = checkpoint.restore()
    with progress("autoencoder", start, config.steps, console) as report:
        for step in range(start + 1, config.steps + 1):
            error = _vae_step(vae, images, config, step_generator(seed, step), optimizer)
            schedule.step()
            report(step, f"psnr {10 * math.log10(4 / error):.2f} dB")
            if step % 250 == 0 or step == config.steps:
                checkpoint.save(step)
    standardise_latents(vae, to_tensor(images[:2000]))
    return vae.eval()


def _vae_step(
    vae: AutoencoderKL,
    images: NDArray[np.uint8],
    config: VaeConfig,
    generator: torch.Generator,
    optimizer: torch.optim.Optimizer,
) -> float:
    """One update; returns the mean squared error of the batch (pixels in -1..1)."""
    index = torch.randint(len(images), (config.batch,), generator=generator).numpy()
    pixels = to_tensor(images[index])
    posterior = vae.encode(pixels).latent_dist
    decoded = vae.decode(posterior.sample(generator)).sample
    squared = mse_loss(decoded, pixels)
    kl = posterior.kl().mean() / posterior.mean[0].numel()
    loss = l1_loss(decoded, pixels) + squared + config.kl_weight * kl
    optimizer.zero_grad()
    loss.backward()
    torch.nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
    optimizer.step()
    return squared.item()


@torch.no_grad()
def standardise_latents(vae: AutoencoderKL, pixels: torch.Tensor) -> None:
    """Give every latent channel mean 0 and deviation 1 by folding an affine map into the two 1x1 convolutions.

    Exact: decode(encode(x)) stays the same. One `scaling_factor` could not do it for channels that differ.
    """
    posterior = vae.encode(pixels).latent_dist
    mean = posterior.mean.mean(dim=(0, 2, 3))
    deviation = (posterior.mean.var(dim=(0, 2, 3)) + posterior.var.mean(dim=(0, 2, 3))).sqrt()
    channels = len(mean)
    # encoder side: z' = (z - mean) / deviation; the log-variance moves by -2 log deviation
    vae.quant_conv.weight[:channels] /= deviation.view(-1, 1, 1, 1)
    vae.quant_conv.bias[:channels] = (vae.quant_conv.bias[:channels] - mean) / deviation
    vae.quant_conv.bias[channels:] -= 2 * deviation.log()
    # decoder side: z = z' * deviation + mean
    vae.post_quant_conv.bias += vae.post_quant_conv.weight[:, :, 0, 0] @ mean
    vae.post_quant_conv.weight *= deviation.view(1, -1, 1, 1)


@torch.no_grad()
def encode_all(vae: AutoencoderKL, images: NDArray[np.uint8], path: Path) -> None:
    """Store the posterior of every image: `mean` and `std`, float16 [N, 16, 8, 8]."""
    means: list[torch.Tensor] = []
    deviations: list[torch.Tensor] = []
    for first in range(0, len(images), 500):
        posterior = vae.encode(to_tensor(images[first : first + 500])).latent_dist
        means.append(posterior.mean.half())
        deviations.append(posterior.std.half())
    save_file({"mean": torch.cat(means), "std": torch.cat(deviations)}, path)


def load_latents(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """`mean` and `std` of every image, float16 [N, 16, 8, 8] each."""
    stored = load_file(path)
    return stored["mean"], stored["std"]


@torch.no_grad()
def reconstruction_psnr(vae: AutoencoderKL, images: NDArray[np.uint8]) -> float:
    """Peak signal-to-noise ratio of decode(encode(x)), dB."""
    pixels = to_tensor(images)
    decoded = vae.decode(vae.encode(pixels).latent_dist.mean).sample.clamp(-1, 1)
    return 10 * math.log10(4 / mse_loss(decoded, pixels).item())
