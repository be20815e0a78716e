"""Sampling settings that a base model needs, from its configuration: distilled models need few steps, no guidance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dreambooth_trainer.planning.model_facts import SCHEDULER_CONFIG, denoiser_config, read_config

# Steps and guidance scale. A scale of 1 disables guidance.
FOUR_STEPS = (4, 1.0)


def recommended_sampling(folder: Path) -> tuple[int, float] | None:
    """Steps and guidance scale of the model card, of a model that its configuration identifies; None of other models.

    Stable Diffusion 3.5 Large Turbo has the configuration of Large, so it is not identified.

    Raises:
        UserError: a configuration cannot be read.
    """
    scheduler, denoiser = read_config(folder, SCHEDULER_CONFIG), read_config(folder, denoiser_config(folder))
    match denoiser.get("_class_name"):
        case "FluxTransformer2DModel":
            # FLUX.1 schnell. In dev, the shift of the schedule depends on the resolution.
            distilled = not denoiser.get("guidance_embeds") and not scheduler.get("use_dynamic_shifting")
            return FOUR_STEPS if distilled else None
        case "SD3Transformer2DModel":
            return _stable_diffusion_3(denoiser)
        case "ZImageTransformer2DModel":
            # Turbo has shift 3, the model that it is distilled from 6.
            return (9, 1.0) if scheduler.get("shift", 1.0) <= 3 else (50, 5.0)
        case _:
            return FOUR_STEPS if _is_turbo(scheduler) else None


def _stable_diffusion_3(denoiser: dict[str, Any]) -> tuple[int, float] | None:
    if denoiser.get("qk_norm") is None:
        return 28, 7.0  # 3 Medium
    return (40, 4.5) if denoiser.get("dual_attention_layers") else None  # 3.5 Medium, or Large


def _is_turbo(scheduler: dict[str, Any]) -> bool:
    """Whether a model samples at the last timesteps, as SD Turbo and SDXL Turbo.

    So do models with a schedule that ends at zero signal-to-noise ratio, which are not distilled.
    """
    zero_snr = scheduler.get("rescale_betas_zero_snr") or scheduler.get("prediction_type") == "v_prediction"
    return scheduler.get("timestep_spacing") == "trailing" and not zero_snr
