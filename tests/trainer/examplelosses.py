"""The losses of diffusers' example scripts for every model family."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from diffusers import (
    DDPMScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    IFPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from torch import Tensor

PROMPTS = ["a sks dog", "a dog", "a dog on the beach"]
U = torch.tensor([0.0, 0.5, 0.999])


def ddpm_loss(pipeline: Any, clean: Tensor, noise: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss of the example scripts for Stable Diffusion 1, 2 and XL."""
    scheduler, timesteps = DDPMScheduler.from_config(pipeline.scheduler.config), torch.tensor([0, 500, 999])
    noisy: Any = scheduler.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
    return (predict(noisy, timesteps) - noise).square().mean(dim=(1, 2, 3))


def sd_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    text, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    return ddpm_loss(pipeline, clean, noise, lambda noisy, t: pipeline.unet(noisy, t, text).sample)


def xl_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_text_to_image_sdxl.py, without crops."""
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    time_ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * len(PROMPTS))
    conditions = {"text_embeds": pooled, "time_ids": time_ids}

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return pipeline.unet(noisy, timesteps, text, added_cond_kwargs=conditions).sample

    return ddpm_loss(pipeline, clean, noise, predict)


def noise_levels(pipeline: Any, position: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmas [N, 1, 1, 1] and timesteps [N] of positions in a flow matching schedule, as in the example scripts."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = (position * 1000).long()
    return scheduler.sigmas[indices].view(-1, 1, 1, 1), scheduler.timesteps[indices]


def sd3_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_sd3.py, with its defaults: logit-normal density, preconditioned outputs."""
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    sigmas, timesteps = noise_levels(pipeline, torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(U)))
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(noisy, text, pooled, timesteps).sample
    return (prediction * -sigmas + noisy - clean).square().mean(dim=(1, 2, 3))


def flux_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_flux.py, with its defaults: uniform density, guidance scale 3.5."""
    text, pooled, text_ids = pipeline.encode_prompt(PROMPTS)
    sigmas, timesteps = noise_levels(pipeline, U)
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(
        pipeline._pack_latents(noisy, *noisy.shape),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=timesteps / 1000,
        img_ids=pipeline._prepare_latent_image_ids(3, 4, 4, "cpu", torch.float32),
        txt_ids=text_ids,
        guidance=torch.full([3], 3.5),
    ).sample
    unpacked = pipeline._unpack_latents(prediction, 32, 32, pipeline.vae_scale_factor)
    return (unpacked - (noise - clean)).square().mean(dim=(1, 2, 3))


def z_image_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_lora_z_image.py, with its defaults: uniform density."""
    text, _ = pipeline.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    sigmas, timesteps = noise_levels(pipeline, U)
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(list(noisy.unsqueeze(2)), (1000 - timesteps) / 1000, text).sample
    return (-torch.stack(prediction).squeeze(2) - (noise - clean)).square().mean(dim=(1, 2, 3))


def if_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth.py with a U-Net that predicts the variance."""
    text, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        prediction, _ = pipeline.unet(noisy, timesteps, text).sample.chunk(2, dim=1)
        return prediction

    return ddpm_loss(pipeline, clean, noise, predict)


# By fixture: the plain pipeline, and the loss of the example script for each of PROMPTS, at the positions U.
FAMILIES: dict[str, tuple[Any, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "tiny_model": (StableDiffusionPipeline, sd_loss),
    "tiny_xl_model": (StableDiffusionXLPipeline, xl_loss),
    "tiny_sd3_model": (StableDiffusion3Pipeline, sd3_loss),
    "tiny_sd3_model_without_t5": (StableDiffusion3Pipeline, sd3_loss),
    "tiny_flux_model": (FluxPipeline, flux_loss),
    "tiny_z_image_model": (ZImagePipeline, z_image_loss),
    "tiny_if_model": (IFPipeline, if_loss),
}
