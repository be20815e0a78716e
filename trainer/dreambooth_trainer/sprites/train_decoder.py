"""Stage 3: the decoder alone, on the cached latents.

The latents are fixed from here on, so the denoiser may train at the same time; without the encoder a step is cheaper,
and what is left to learn, crisp outlines from given latents, is the decoder's.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from rich.console import Console
from torch.nn.functional import l1_loss, mse_loss

from .train_vae import to_tensor
from .training import Checkpoint, make_optimizer, progress, step_generator


@dataclass(frozen=True)
class DecoderConfig:
    """Schedule of the decoder's own training."""

    steps: int = 3_000
    batch: int = 32
    rate: float = 1e-3
    jitter: float = 0.05
    """Deviation of noise added to the latents (their own is 1): what a denoiser makes is never exact."""


def refine_decoder(
    vae: AutoencoderKL,
    images: NDArray[np.uint8],
    latents: tuple[torch.Tensor, torch.Tensor],
    work: Path,
    config: DecoderConfig,
    seed: int,
    console: Console,
) -> AutoencoderKL:
    """Train `vae`'s decoder in place, resuming from `work/decoder.ckpt`; the encoder does not change."""
    vae.train()
    parameters = [*vae.post_quant_conv.parameters(), *vae.decoder.parameters()]
    optimizer, schedule = make_optimizer(parameters, config.rate, config.steps)
    checkpoint = Checkpoint(work / "decoder.ckpt", vae=vae, optimizer=optimizer, schedule=schedule)
    start = checkpoint.restore()
    mean, std = latents
    with progress("decoder", start, config.steps, console) as report:
        for step in range(start + 1, config.steps + 1):
            generator = step_generator(seed, step)
            index = torch.randint(len(images), (config.batch,), generator=generator)
            deviation = (std[index].float() ** 2 + config.jitter**2).sqrt()
            latent = mean[index].float() + deviation * torch.randn(deviation.shape, generator=generator)
            pixels = to_tensor(images[index.numpy()])
            decoded = vae.decode(latent).sample
            squared = mse_loss(decoded, pixels)
            optimizer.zero_grad()
            (l1_loss(decoded, pixels) + squared).backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            report(step, f"psnr {10 * math.log10(4 / squared.item()):.2f} dB")
            if step % 250 == 0 or step == config.steps:
                checkpoint.save(step)
    return vae.eval()
