"""Min-SNR loss weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor, nn

from dreambooth_trainer.families.ddpm import loss_target, min_snr_weights
from dreambooth_trainer.families.stable_diffusion import StableDiffusionStage
from dreambooth_trainer.methods.base import Learner
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.module import DreamBoothModule
from dreambooth_trainer.training.preservation import ClassImages


def test_weights_follow_the_equations_of_the_paper() -> None:
    a = torch.tensor([0.99, 0.9, 5 / 6, 0.5, 0.1])
    snr = a / (1 - a)
    torch.testing.assert_close(min_snr_weights(a, 5.0, "epsilon"), snr.clamp(max=5) / snr)
    torch.testing.assert_close(min_snr_weights(a, 5.0, "v_prediction"), snr.clamp(max=5) / (snr + 1))


def test_weights_are_finite_without_signal() -> None:
    a = torch.tensor([0.0])
    assert min_snr_weights(a, 5.0, "epsilon").tolist() == [1.0]
    assert min_snr_weights(a, 5.0, "v_prediction").tolist() == [0.0]


class Zero(nn.Module):
    """A denoiser that predicts zeros."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, sample: Tensor, *unused: Any, **more: Any) -> Any:
        del unused, more
        return type("Output", (), {"sample": sample * self.weight})


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_instance_and_class_images_are_weighted_alike(prediction_type: str) -> None:
    scheduler: Any = DDPMScheduler(prediction_type=prediction_type)
    tokenizer: Any = None
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, 4, 4, 8, 8, generator=generator)
    timesteps = torch.tensor([10, 900, 300, 700])
    zeros = torch.zeros_like(latents)
    examples = {"latent_mean": latents, "latent_std": zeros, "text_embeds": torch.zeros(4, 1, 8)}
    batch = Batch(examples, {"latent": zeros, "noise": noise}, (timesteps + 0.5) / 1000, num_instance_images=2)

    def losses(gamma: float | None) -> Tensor:
        stage = StableDiffusionStage({}, tokenizer, scheduler)
        return DreamBoothModule(stage, Learner({"unet": Zero()}, []), ClassImages(), 0.5, gamma)(batch)

    errors = loss_target(scheduler, latents, noise, timesteps).square().mean(dim=(1, 2, 3))
    weighted = errors * min_snr_weights(scheduler.alphas_cumprod[timesteps], 5.0, prediction_type)
    for gamma, expected in ((None, errors), (5.0, weighted)):
        instance, prior = expected[:2].mean(), expected[2:].mean()
        torch.testing.assert_close(losses(gamma), torch.stack([instance + 0.5 * prior, instance, prior]))
