"""Predictions of families with flow matching (Lipman et al. 2023; Liu et al. 2023): Stable Diffusion 3 and FLUX.1.

Noisy latents are (1 - s) clean + s noise, with the noise level s in [0, 1]. The denoiser predicts noise - clean.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.families.base import Prediction

Density = Literal["uniform", "logit-normal"]


def open_flow_scheduler(folder: Path) -> FlowMatchEulerDiscreteScheduler:
    """The noise schedule of a diffusers folder, on the CPU."""
    with torch.device("cpu"):
        return cast(
            "FlowMatchEulerDiscreteScheduler", FlowMatchEulerDiscreteScheduler.from_pretrained(folder / "scheduler")
        )


def flow_matching_prediction(
    scheduler: FlowMatchEulerDiscreteScheduler,
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    noise: Tensor,
    u: Tensor,
    *,
    density: Density = "uniform",
    error_in_clean: bool = False,
) -> Prediction:
    """What is predicted for the noisy latents at some noise levels.

    Args:
        scheduler: with its schedule as opened, before `set_timesteps`.
        predict: returns the predicted noise - clean from noisy latents and timesteps [N], which are 1000 s.
        clean: latents without noise, [N, C, h, w].
        u: uniform in [0, 1), [N]. Becomes a position in the schedule.
        density: of that position; logit-normal as in Esser et al. 2024, section 3.1, with mean 0 and variance 1.
        error_in_clean: take the error in the clean latents, which is s times that of the prediction.
    """
    position = torch.special.ndtri(u).sigmoid() if density == "logit-normal" else u
    length = int(scheduler.config["num_train_timesteps"])
    indices = (position * length).long().clamp(max=length - 1)
    schedule: Any = scheduler  # diffusers does not annotate the tensors
    sigmas: Tensor = schedule.sigmas.to(u.device)[indices]
    timesteps: Tensor = schedule.timesteps.to(u.device)[indices]
    level = sigmas.view(-1, *[1] * (clean.ndim - 1))
    noisy = (1 - level) * clean + level * noise
    weights = sigmas.square() if error_in_clean else None
    return Prediction(predict(noisy, timesteps), noise - clean, weights)


def refuse_min_snr(min_snr_gamma: float | None) -> None:
    """Reject the weights of DDPM noise schedules. The plan does this first.

    Raises:
        UserError: a gamma is set.
    """
    if min_snr_gamma is not None:
        rule, remedy = "does not apply to models with flow matching", "remove minSnrGamma"
        raise UserError(ValidationIssue("spec.training.minSnrGamma", min_snr_gamma, rule, remedy))
