"""Stage 3, the longest: trains the text encoder and the UNet together on cached latents."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from rich.console import Console
from torch import nn
from torch.nn.utils import clip_grad_norm_
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from dreambooth_trainer.sprites.tokenizer import CONTEXT
from dreambooth_trainer.sprites.training import Checkpoint, make_optimizer, progress, step_generator

SNR_CAP = 5.0
"""Signal-to-noise ratio above which the weight of a timestep decreases (min-SNR weighting)."""


@dataclass(frozen=True)
class UnetConfig:
    """Size and training settings of the denoiser and its text encoder."""

    channels: tuple[int, ...] = (48, 64, 96)
    text_width: int = 128
    text_layers: int = 2
    steps: int = 4_000
    batch: int = 32
    rate: float = 1e-3
    ema_decay: float = 0.999
    caption_dropout: float = 0.1
    """Share of captions that are replaced by "", for classifier-free guidance."""
    snapshot_every: int = 250


def build_unet(config: UnetConfig, latent_channels: int) -> UNet2DConditionModel:
    """Build a UNet of three levels: 16 x 16 (convolutions only), 8 x 8 and 4 x 4 (with cross-attention)."""
    return UNet2DConditionModel(
        sample_size=16,
        in_channels=latent_channels,
        out_channels=latent_channels,
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * (len(config.channels) - 1)),
        up_block_types=(*("CrossAttnUpBlock2D",) * (len(config.channels) - 1), "UpBlock2D"),
        block_out_channels=config.channels,
        layers_per_block=1,
        cross_attention_dim=config.text_width,
        attention_head_dim=4,  # the number of heads, despite the name
        norm_num_groups=min(16, config.channels[0] // 2),
    )


def build_text_encoder(config: UnetConfig, tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a small CLIP text model, which is trained from scratch by the denoising loss only.

    Token embeddings are initialized with standard deviation 1 instead of CLIP's 0.02. With 0.02, the text encoder first
    learns the background, which explains most of an image, and ignores the class: after 1,750 steps, "a big dog" and
    "a big cat" still gave the same image.
    """
    encoder = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=config.text_width,
            intermediate_size=2 * config.text_width,
            num_hidden_layers=config.text_layers,
            num_attention_heads=4,
            max_position_embeddings=CONTEXT,
            projection_dim=config.text_width,
            bos_token_id=cast("int", tokenizer.bos_token_id),
            eos_token_id=cast("int", tokenizer.eos_token_id),
            pad_token_id=cast("int", tokenizer.pad_token_id),
        )
    )
    nn.init.normal_(encoder.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    return encoder


def noise_settings() -> dict[str, Any]:
    """The noise schedule of Stable Diffusion, for training and sampling."""
    return {
        "num_train_timesteps": 1000,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "beta_end": 0.012,
        "prediction_type": "epsilon",
    }


class Denoiser(nn.Module):
    """Text encoder and UNet as one module, with a single optimizer, EMA and checkpoint."""

    def __init__(self, text_encoder: CLIPTextModel, unet: UNet2DConditionModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = unet

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """[B, 4, 16, 16], [B], [B, 16] -> predicted noise, [B, 4, 16, 16]."""
        states = self.text_encoder(tokens).last_hidden_state
        return self.unet(noisy, timesteps, states).sample


@dataclass(frozen=True)
class Examples:
    """Training data of the denoiser, cached by the earlier stages."""

    mean: torch.Tensor
    """float16 [N, 4, 16, 16]"""
    std: torch.Tensor
    tokens: torch.Tensor
    """int64 [N, captions, 16]"""
    empty: torch.Tensor
    """Tokens of the empty caption, int64 [16]."""

    def batch(self, size: int, dropout: float, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
        """Sample latents [size, 4, 16, 16] from the posteriors, each with one of its captions [size, 16] or ""."""
        index = torch.randint(len(self.mean), (size,), generator=generator)
        mean, std = self.mean[index].float(), self.std[index].float()
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        choice = torch.randint(self.tokens.shape[1], (size,), generator=generator)
        dropped = torch.rand(size, generator=generator) < dropout
        return latents, torch.where(dropped[:, None], self.empty, self.tokens[index, choice])


def denoising_loss(
    model: Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor],
    scheduler: DDPMScheduler,
    latents: torch.Tensor,
    tokens: torch.Tensor,
    generator: torch.Generator,
) -> torch.Tensor:
    """Mean squared error of the predicted noise, weighted min(SNR, 5) / SNR (Hang et al. 2023)."""
    noise = torch.randn(latents.shape, generator=generator)
    # Stratified sampling: each batch covers all noise levels evenly, which halves the variance of the loss.
    size = len(latents)
    uniform = (torch.arange(size) + torch.rand(size, generator=generator)) / size
    timesteps = (uniform * scheduler.config["num_train_timesteps"]).long()
    noisy = scheduler.add_noise(latents, noise, timesteps)  # pyright: ignore[reportArgumentType]
    snr = compute_snr(scheduler, timesteps)
    weight = snr.clamp(max=SNR_CAP) / snr
    error = (model(noisy, timesteps, tokens) - noise).pow(2).mean(dim=(1, 2, 3))
    return (weight * error).mean()


def train_unet(
    examples: Examples,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    work: Path,
    config: UnetConfig,
    seed: int,
    console: Console,
) -> StableDiffusionPipeline:
    """Train, resuming from `work/unet.ckpt`. Snapshots of the complete pipeline are written to `work/snapshot`."""
    torch.manual_seed(seed)
    model = Denoiser(build_text_encoder(config, tokenizer), build_unet(config, examples.mean.shape[1])).train()
    parameters = list(model.parameters())
    optimizer, schedule = make_optimizer(parameters, config.rate, config.steps)
    ema = EMAModel(parameters, decay=config.ema_decay)
    checkpoint = Checkpoint(work / "unet.ckpt", model=model, optimizer=optimizer, schedule=schedule, ema=ema)
    start = checkpoint.restore()
    scheduler = DDPMScheduler(**noise_settings())
    with progress("denoiser", start, config.steps, console) as report:
        for step in range(start + 1, config.steps + 1):
            generator = step_generator(seed, step)
            latents, tokens = examples.batch(config.batch, config.caption_dropout, generator)
            loss = denoising_loss(model, scheduler, latents, tokens, generator)
            optimizer.zero_grad()
            loss.backward()
            clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            ema.step(parameters)
            report(step, f"loss {loss.item():.4f}")
            if step % config.snapshot_every == 0 or step == config.steps:
                checkpoint.save(step)
                if step < config.steps:
                    _snapshot(model, ema, vae, tokenizer, work / "snapshot")
    ema.copy_to(parameters)
    return make_pipeline(model, vae, tokenizer)


def make_pipeline(model: Denoiser, vae: AutoencoderKL, tokenizer: CLIPTokenizer) -> StableDiffusionPipeline:
    """The trained components as a Stable Diffusion pipeline with a DDIM scheduler."""
    scheduler = DDIMScheduler(**noise_settings(), clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    return StableDiffusionPipeline(
        vae=vae,
        text_encoder=model.text_encoder,
        tokenizer=tokenizer,
        unet=model.unet,
        scheduler=cast("Any", scheduler),
        safety_checker=None,  # pyright: ignore[reportArgumentType]
        feature_extractor=None,  # pyright: ignore[reportArgumentType]
        requires_safety_checker=False,
    )


def _snapshot(model: Denoiser, ema: EMAModel, vae: AutoencoderKL, tokenizer: CLIPTokenizer, path: Path) -> None:
    """Write the EMA weights as a pipeline, then restore the training weights."""
    parameters = list(model.parameters())
    ema.store(parameters)
    ema.copy_to(parameters)
    make_pipeline(model, vae, tokenizer).save_pretrained(path)
    ema.restore(parameters)
