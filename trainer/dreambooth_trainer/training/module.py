"""The trained modules and the loss in one `nn.Module`, so that one DeepSpeed engine shards all parameters.

Legend: B instance images, and the same number of class images, per micro-batch; C h w latent, L tokens, D conditioning
width.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dreambooth_trainer.families.base import Family, Part
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import DeterministicSampler, noise
from dreambooth_trainer.training.cache import Latents, TrainingData, sample_latents
from dreambooth_trainer.training.loss_weights import min_snr_weights


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one worker: instance images, then class images.

    Attributes:
        latents, noise: [n, C, h, w]; n = B, or 2 B with prior preservation.
        timesteps: [n].
        token_ids: [n, L].
        conditioning: [n, L, D], or None if the text encoder is trained.
        num_instance_images: B.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor
    conditioning: Tensor | None
    num_instance_images: int


class DreamBoothModule(nn.Module):
    """The denoiser, the text encoder if it is trained, and the DreamBooth loss."""

    def __init__(
        self,
        family: Family,
        scheduler: DDPMScheduler,
        denoiser: nn.Module,
        text_encoder: nn.Module | None,
        prior_loss_weight: float,
        min_snr_gamma: float | None = None,
    ) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self.family, self.scheduler, self.prior_loss_weight = family, scheduler, prior_loss_weight
        self.min_snr_gamma = min_snr_gamma

    def forward(self, batch: Batch) -> Tensor:
        """Losses of a micro-batch, [3]: total, instance, prior.

        total = instance + weight x prior (paper, equation 2), both with min-SNR weights if set. The prior loss is zero
        without class images. The result is one tensor, because ZeRO-3 registers hooks on returned tensors and does not
        support dataclasses.
        """
        weight = next(self.denoiser.parameters())
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)  # pyright: ignore[reportArgumentType] - any integer tensor
        if batch.conditioning is not None:
            conditioning = batch.conditioning
        elif self.text_encoder is not None:
            conditioning = self.family.encode_prompts(self.text_encoder, batch.token_ids)
        else:
            raise ValueError("a batch without conditioning needs a text encoder")
        prediction = self.family.predict(
            self.denoiser, noisy.to(weight.dtype), batch.timesteps, conditioning.to(weight.dtype)
        )
        target = self.family.loss_target(self.scheduler, batch.latents, batch.noise, batch.timesteps)
        error = (prediction.float() - target.float()).square().mean(dim=(1, 2, 3))
        if self.min_snr_gamma is not None:
            alphas_cumprod = self.scheduler.alphas_cumprod.to(error.device)[batch.timesteps]
            prediction_type = str(self.scheduler.config["prediction_type"])
            error = error * min_snr_weights(alphas_cumprod, self.min_snr_gamma, prediction_type)
        instance_errors, prior_errors = error[: batch.num_instance_images], error[batch.num_instance_images :]
        instance = instance_errors.mean()
        prior = prior_errors.mean() if len(prior_errors) else torch.zeros_like(instance)
        return torch.stack([instance + self.prior_loss_weight * prior, instance, prior])


def prepare_module(
    plan: Plan, family: Family, modules: Mapping[Part, nn.Module], scheduler: DDPMScheduler
) -> DreamBoothModule:
    """Prepare the modules that a plan trains with its fine-tuning method.

    Args:
        modules: by field of `Components`; those in `plan.trained_parts`.
    """
    method = open_method(plan.spec.training.method)
    for name in plan.trained_parts:
        method.prepare(modules[name].train(), plan.spec.training, family.lora_target_modules()[name])
    denoiser, text_encoder = modules["denoiser"], modules.get("text_encoder")
    if plan.spec.training.gradient_checkpointing:
        denoiser.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue] - every diffusers model has it
        if text_encoder is not None:
            text_encoder.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue] - every transformers model has it
    loss_weight, gamma = plan.spec.prior_preservation.loss_weight, plan.spec.training.min_snr_gamma
    return DreamBoothModule(family, scheduler, denoiser, text_encoder, loss_weight, gamma)


def make_batch(
    data: TrainingData,
    samplers: tuple[DeterministicSampler, DeterministicSampler | None],
    step: int,
    micro_batch: int,
    num_micro_batches: int,
) -> Batch:
    """Assemble one micro-batch of an optimizer step, on the device of the data.

    Noise and timesteps are generated on the CPU: the generators of GPUs give other numbers.

    Args:
        samplers: of the instance images, and of the class images.
        micro_batch: index in [0, num_micro_batches).
    """
    kinds: list[tuple[Latents, DeterministicSampler]] = [(data.instance_images, samplers[0])]
    if data.class_images is not None and samplers[1] is not None:
        kinds.append((data.class_images, samplers[1]))
    latents, noises, timesteps, token_ids, conditionings = [], [], [], [], []
    for cached, sampler in kinds:
        device = cached.mean.device
        sample = sampler.sample(step, micro_batch, num_micro_batches)
        # Two noises per image: one to sample its latent, one for the forward diffusion.
        noise_B2Chw = _to_device(noise(sample.noise_seeds, (2, *cached.mean.shape[1:])), device)
        indices = _to_device(sample.indices, device)
        latents.append(sample_latents(cached, indices, noise_B2Chw[:, 0]))
        noises.append(noise_B2Chw[:, 1])
        timesteps.append(_to_device(sample.timesteps, device))
        prompts = cached.prompt_indices[indices]
        token_ids.append(cached.token_ids[prompts])
        if cached.conditioning is not None:
            conditionings.append(cached.conditioning[prompts])
    return Batch(
        latents=torch.cat(latents),
        noise=torch.cat(noises),
        timesteps=torch.cat(timesteps),
        token_ids=torch.cat(token_ids),
        conditioning=torch.cat(conditionings) if conditionings else None,
        num_instance_images=len(latents[0]),
    )


def _to_device(tensor: Tensor, device: torch.device) -> Tensor:
    # A copy from pageable memory would wait for the GPU.
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
