"""The image-prompt adapter of a job that trains nothing."""

from __future__ import annotations

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.imageprompt import IpAdapter
from dreambooth_api.training import Training
from dreambooth_trainer.planning.defaults import ModelDefaults


class PlannedImagePrompts(Strict):
    """The image-prompt adapter of a job that trains nothing, and the weight of its attention to the images."""

    adapter: IpAdapter
    scale: float


def plan_image_prompts(training: Training, defaults: ModelDefaults, model_id: str) -> PlannedImagePrompts | None:
    """The adapter of a job; None if its method has none.

    Raises:
        UserError: the job sets no adapter, and there is no default for the base model.
    """
    given = training.image_prompts
    if given is None:
        return None
    adapter = given.adapter or defaults.ip_adapter
    if adapter is None:
        rule = f"is not set, and there is no default for {model_id}"
        remedy = "set an IP-Adapter for the model, for example adapter: {id: h94/IP-Adapter, "
        remedy += "weights: models/ip-adapter_sd15.safetensors} for Stable Diffusion 1.5"
        raise UserError(ValidationIssue("spec.training.imagePrompt.adapter", None, rule, remedy))
    return PlannedImagePrompts(adapter=adapter, scale=given.scale)
