"""Everything that learns in one module, so that one DeepSpeed engine shards it, with the loss inside.

Legend: B instance images and as many class images in one batch; C h w latent, L tokens, D conditioning width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dreambooth_trainer.families.base import Family
from dreambooth_trainer.training.batches import DeterministicSampler, noise
from dreambooth_trainer.training.cache import Latents, TrainingData, sample


@dataclass(frozen=True)
class Batch:
    """One micro-batch on one worker; instance images first, class images after.

    Attributes:
        latents, noise: [n, C, h, w]; n = B, or 2 B with prior preservation.
        timesteps: [n].
        token_ids: [n, L]. conditioning: [n, L, D] or None where the text encoder learns.
        instance_count: B.
    """

    latents: Tensor
    noise: Tensor
    timesteps: Tensor
    token_ids: Tensor
    conditioning: Tensor | None
    instance_count: int


class DreamBoothModule(nn.Module):
    """The denoiser, and the text encoder where it learns."""

    def __init__(
        self,
        family: Family,
        scheduler: DDPMScheduler,
        denoiser: nn.Module,
        text_encoder: nn.Module | None,
        prior_weight: float,
    ) -> None:
        super().__init__()
        self.denoiser, self.text_encoder = denoiser, text_encoder
        self.family, self.scheduler, self.prior_weight = family, scheduler, prior_weight

    def forward(self, batch: Batch) -> Tensor:
        """Mean squared errors of one micro-batch, [3]: total, instance, prior.

        total = instance + weight x prior (paper, equation 2); prior is zero without class images. One tensor,
        because ZeRO-3 hooks onto tensors that a module returns and knows no dataclasses.
        """
        weight = next(self.denoiser.parameters())
        noisy = self.scheduler.add_noise(batch.latents, batch.noise, batch.timesteps)  # pyright: ignore[reportArgumentType] - any integer tensor
        if batch.conditioning is not None:
            conditioning = batch.conditioning
        elif self.text_encoder is not None:
            conditioning = self.family.encode_prompts(self.text_encoder, batch.token_ids)
        else:
            raise ValueError("a batch without conditioning needs a text encoder")
        answer = self.family.predict(
            self.denoiser, noisy.to(weight.dtype), batch.timesteps, conditioning.to(weight.dtype)
        )
        target = self.family.loss_target(self.scheduler, batch.latents, batch.noise, batch.timesteps)
        error = (answer.float() - target.float()).square().mean(dim=(1, 2, 3))
        instance = error[: batch.instance_count].mean()
        prior = (
            error[batch.instance_count :].mean() if len(error) > batch.instance_count else torch.zeros_like(instance)
        )
        return torch.stack([instance + self.prior_weight * prior, instance, prior])


def make_batch(
    data: TrainingData,
    orders: tuple[DeterministicSampler, DeterministicSampler | None],
    step: int,
    part: int,
    parts: int,
) -> Batch:
    """Part `part` of `parts` of the batch of optimizer step `step`."""
    kinds: list[tuple[Latents, DeterministicSampler]] = [(data.instance, orders[0])]
    if data.prior is not None and orders[1] is not None:
        kinds.append((data.prior, orders[1]))
    latents, noises, timesteps, ids, conditionings = [], [], [], [], []
    for kind, order in kinds:
        draws = order.sample(step, part, parts)
        shape = tuple(kind.mean.shape[1:])
        both = noise(draws.noise_seeds, (2, *shape))
        latents.append(sample(kind, draws.indices, both[:, 0]))
        noises.append(both[:, 1])
        timesteps.append(draws.timesteps)
        prompts = kind.prompt_of[draws.indices]
        ids.append(kind.token_ids[prompts])
        if kind.conditioning is not None:
            conditionings.append(kind.conditioning[prompts])
    return Batch(
        latents=torch.cat(latents),
        noise=torch.cat(noises),
        timesteps=torch.cat(timesteps),
        token_ids=torch.cat(ids),
        conditioning=torch.cat(conditionings) if conditionings else None,
        instance_count=len(latents[0]),
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same batch on a device."""
    return Batch(
        latents=batch.latents.to(device),
        noise=batch.noise.to(device),
        timesteps=batch.timesteps.to(device),
        token_ids=batch.token_ids.to(device),
        conditioning=None if batch.conditioning is None else batch.conditioning.to(device),
        instance_count=batch.instance_count,
    )
