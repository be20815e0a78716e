"""Predictions of families with a DDPM noise schedule: Stable Diffusion 1, 2 and XL, and DeepFloyd IF."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from diffusers import DDPMScheduler
from torch import Tensor

from dreambooth_trainer.families.base import Prediction


def ddpm_prediction(
    scheduler: DDPMScheduler,
    predict: Callable[[Tensor, Tensor], Tensor],
    clean: Tensor,
    noise: Tensor,
    u: Tensor,
    min_snr_gamma: float | None,
) -> Prediction:
    """What is predicted for the noisy latents at some timesteps.

    Args:
        predict: returns the prediction from noisy latents and timesteps [N].
        clean: latents without noise, [N, C, h, w].
        u: uniform in [0, 1), [N]. Becomes a timestep.
    """
    length = int(scheduler.config["num_train_timesteps"])
    timesteps = (u * length).long().clamp(max=length - 1)
    noisy = scheduler.add_noise(clean, noise, cast("Any", timesteps))
    output, target = predict(noisy, timesteps), loss_target(scheduler, clean, noise, timesteps)
    if min_snr_gamma is None:
        return Prediction(output, target)
    alphas_cumprod = scheduler.alphas_cumprod.to(output.device)[timesteps]
    weights = min_snr_weights(alphas_cumprod, min_snr_gamma, str(scheduler.config["prediction_type"]))
    return Prediction(output, target, weights)


def loss_target(scheduler: DDPMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the denoiser is trained to predict, noise or velocity, [N, C, h, w].

    Raises:
        ValueError: the prediction type of the scheduler is not supported.
    """
    prediction_type = scheduler.config["prediction_type"]
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "v_prediction":
        return scheduler.get_velocity(clean, noise, cast("Any", timesteps))
    raise ValueError(
        f"scheduler/scheduler_config.json: prediction_type {prediction_type!r} is neither epsilon nor v_prediction"
    )


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, prediction_type: str) -> Tensor:
    """The weight of each example's error, [N] (Hang et al. 2023, Efficient Diffusion Training via Min-SNR Weighting).

    The paper's weight of the error in x0 is min(SNR, gamma), with SNR = a / (1 - a). An error in epsilon is SNR times
    as large as one in x0, an error in v (SNR + 1) times, so the weight is divided by that.

    Args:
        alphas_cumprod: a, the noise schedule's cumulative product at each example's timestep, [N].
        prediction_type: "epsilon" or "v_prediction".
    """
    signal, noise = alphas_cumprod, 1 - alphas_cumprod
    if prediction_type == "epsilon":
        # min(SNR, gamma) / SNR, in a form without 0 / 0 at SNR 0.
        return (gamma * noise / signal).clamp(max=1)
    if prediction_type == "v_prediction":
        # min(SNR, gamma) / (SNR + 1), where 1 / (SNR + 1) = 1 - a.
        return signal.minimum(gamma * noise)
    raise ValueError(f"prediction type {prediction_type!r} has no min-SNR weight")
