"""Time of a training step, compared with two other loops: `python bench/step.py`.

- example: the loop of the diffusers example script, which encodes images and prompts at every step.
- bare: a PyTorch loop on cached latents and prompt embeddings, without any of the trainer's code.
- trainer: the trainer's step for a single process.

All run in the same process, in turns, with the same random weights, a narrower Stable Diffusion. Prints the seconds of
the fastest step of each, and the ratios.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from unittest import mock

import click
import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel

from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.families.stable_diffusion import StableDiffusionStage
from dreambooth_trainer.methods.full import Full
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.training import plain_engine
from dreambooth_trainer.training.cache import EncodedImages, TrainingData
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.module import DreamBoothModule
from dreambooth_trainer.training.preservation import ClassImages

WIDTH, TOKENS, TEXT = 64, 77, 256


def make_models() -> tuple[AutoencoderKL, CLIPTextModel, UNet2DConditionModel]:
    """Narrow versions of Stable Diffusion's autoencoder, text encoder and U-Net, with random weights."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(64, 128, 256, 256),
        layers_per_block=2,
    )
    text = CLIPTextModel(CLIPTextConfig(hidden_size=TEXT, intermediate_size=1024, num_attention_heads=8))
    unet = UNet2DConditionModel(
        sample_size=16,
        block_out_channels=(WIDTH, 2 * WIDTH, 4 * WIDTH, 4 * WIDTH),
        cross_attention_dim=TEXT,
        attention_head_dim=8,
    )
    return vae.requires_grad_(False), text.requires_grad_(False), unet


def make_plan(resolution: int) -> Plan:
    """One instance image and one class image per step, fp32."""
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "bench"},
            "spec": {
                "model": {"id": "random"},
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "training": {"resolution": resolution, "globalBatchSize": 1},
            },
        }
    )
    return fill_defaults(job, image_count=1, identifiers=["sks"], zero_stage=1, precision="fp32")


def example_step(
    vae: AutoencoderKL, text: CLIPTextModel, unet: UNet2DConditionModel, pixels: torch.Tensor
) -> Callable[[], object]:
    """A step of the example: autoencoder, text encoder and U-Net, with torch.optim.AdamW."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6)
    scheduler = DDPMScheduler()
    ids = torch.randint(0, 1000, (2, TOKENS))

    def step() -> None:
        latents = vae.encode(pixels).latent_dist.sample() * vae.config.scaling_factor
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        noisy = scheduler.add_noise(latents, noise, timesteps)
        prediction = unet(noisy, timesteps, encoder_hidden_states=text(ids).last_hidden_state).sample
        (prediction - noise).square().mean(dim=(1, 2, 3)).sum().backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bare_step(unet: UNet2DConditionModel, latent_side: int) -> Callable[[], object]:
    """A step on cached latents and prompt embeddings, with torch.optim.AdamW."""
    optimizer = torch.optim.AdamW(unet.parameters(), lr=5e-6, fused=True)
    scheduler = DDPMScheduler()
    latents, conditioning = torch.randn(2, 4, latent_side, latent_side), torch.randn(2, TOKENS, TEXT)

    def step() -> float:
        noise, timesteps = torch.randn_like(latents), torch.randint(0, 1000, (2,))
        prediction = unet(scheduler.add_noise(latents, noise, timesteps), timesteps, conditioning).sample
        loss = (prediction - noise).square().mean(dim=(1, 2, 3)).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return loss.item()

    return step


def trainer_step(unet: UNet2DConditionModel, plan: Plan, latent_side: int) -> Callable[[], object]:
    """A step of the trainer's engine for a single process."""

    def encoded() -> EncodedImages:
        shape = (1, 4, latent_side, latent_side)
        one = torch.tensor([[0, 1]])
        images = {"latent_mean": torch.randn(shape), "latent_std": torch.ones(shape)}
        prompts = {"text_embeds": torch.randn(1, TOKENS, TEXT)}
        return EncodedImages(images, prompts, one, torch.zeros(1, dtype=torch.long), torch.ones(1, dtype=torch.long))

    data = TrainingData(encoded(), encoded())
    stage = StableDiffusionStage({"unet": unet}, mock.Mock(), DDPMScheduler())
    module = DreamBoothModule(stage, Full().prepare(stage, plan, {}), ClassImages(), 1.0)
    with mock.patch.object(plain_engine, "build_module", return_value=module):
        engine = plain_engine.PlainEngine(plan, None)
    steps = iter(range(10**6))
    return lambda: run_step(engine, plan, data, next(steps), 0, 1).tolist()


def seconds(step: Callable[[], object]) -> float:
    """Seconds of one step."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


@click.command(help=__doc__)
@click.option("--resolution", default=256, show_default=True, help="Side of the training images, pixels.")
@click.option("--rounds", default=5, show_default=True)
def main(resolution: int, rounds: int) -> None:
    vae, text, unet = make_models()
    pixels = torch.rand(2, 3, resolution, resolution) * 2 - 1
    steps = {
        "example": example_step(vae, text, unet, pixels),
        "bare": bare_step(unet, resolution // 8),
        "trainer": trainer_step(unet, make_plan(resolution), resolution // 8),
    }
    for step in steps.values():
        step()
    # In turns: other processes on the machine disturb all of them alike. The fastest step is disturbed least.
    times = [{name: seconds(step) for name, step in steps.items()} for _ in range(rounds)]
    fastest = {name: min(row[name] for row in times) for name in steps}
    print(", ".join(f"{name} {value:.3f} s per step" for name, value in fastest.items()))
    for name in ("example", "bare"):
        print(f"{name} / trainer {fastest[name] / fastest['trainer']:.3f}")


if __name__ == "__main__":
    main()
