"""The training loop of the usual DreamBooth script, with which `bench/gpu.py` compares the trainer."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler, StableDiffusionPipeline

WARM_UP_STEPS = 3


@dataclass(frozen=True)
class PlainLoop:
    """What to run: the base model, "cuda" or "cpu", the side of the images in pixels, and the number of steps."""

    base: Path
    device: str
    resolution: int
    steps: int


@dataclass(frozen=True)
class PlainResult:
    """Measured after a few steps of warming up. `peak_bytes` is of the GPU, None on the CPU."""

    steps_per_second: float
    peak_bytes: int | None


def run_plain_loop(given: PlainLoop) -> PlainResult:
    """Train the U-Net on one instance image and one class image per step."""
    pipeline: Any = StableDiffusionPipeline.from_pretrained(given.base, dtype=torch.float32, safety_checker=None)
    pipeline.to(given.device)
    pipeline.vae.requires_grad_(False)
    pipeline.text_encoder.requires_grad_(False)
    on_gpu = given.device == "cuda"
    if on_gpu:
        pipeline.vae.to(torch.bfloat16)
        pipeline.text_encoder.to(torch.bfloat16)
    step = make_step(pipeline, given)
    for _ in range(WARM_UP_STEPS):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    start = time.perf_counter()
    for _ in range(given.steps):
        step()
    if on_gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return PlainResult(given.steps / seconds, torch.cuda.max_memory_allocated() if on_gpu else None)


def make_step(pipeline: Any, given: PlainLoop) -> Any:
    """A function that runs one step: encode images and prompts, predict the noise, and update the U-Net."""
    unet, vae = pipeline.unet.train(), pipeline.vae
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6)
    pixels = torch.rand(2, 3, given.resolution, given.resolution, device=given.device, dtype=vae.dtype) * 2 - 1
    prompts, length = ["a sks dog", "a dog"], pipeline.tokenizer.model_max_length
    tokens = pipeline.tokenizer(prompts, padding="max_length", max_length=length, return_tensors="pt").input_ids
    tokens = tokens.to(given.device)

    def step() -> float:
        with torch.no_grad():
            latents = vae.encode(pixels).latent_dist.sample().float() * vae.config.scaling_factor
            conditioning = pipeline.text_encoder(tokens).last_hidden_state
        noise = torch.randn_like(latents)
        timesteps = torch.randint(0, scheduler.config["num_train_timesteps"], (2,), device=given.device)
        with torch.autocast(given.device, torch.bfloat16, enabled=given.device == "cuda"):
            noisy = scheduler.add_noise(latents, noise, timesteps)
            prediction = unet(noisy, timesteps, encoder_hidden_states=conditioning).sample
        loss = (prediction.float() - noise).square().mean(dim=(1, 2, 3)).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step
