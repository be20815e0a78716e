"""The super-resolution stage of DeepFloyd IF, which enlarges the images of the base model."""

from __future__ import annotations

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.model import BaseModelRef
from dreambooth_api.training import Training
from dreambooth_trainer.planning.defaults import PIXEL_SPACE

# Name of the stage: the folder of its caches, its checkpoints and its model.
SUPER_RESOLUTION = "super_resolution"
SCALE = 4
"""Side length of its images, in side lengths of the base model's."""
# Noise level of the enlarged image, in timesteps of its noise schedule, in training and in sampling: the lowest one, so
# that the image keeps the details of the subject. Other levels were not tried with real weights. diffusers has no value
# for training: its train_dreambooth.py passes the noisy image in place of the enlarged one, with the timestep as the
# level, and its pipeline samples with 250 by default.
NOISE_LEVEL = 0
# As in diffusers' pipeline.
GUIDANCE_SCALE = 4.0
MAX_STEPS = 50
# By method, from diffusers' DreamBooth guide: https://github.com/huggingface/diffusers/blob/58eb52c0803e/examples/dreambooth/README.md#if
# In full it has 5e-6 for batches of 12, and "as low as 1e-8" for batches of 4. Our default is one image per step. None
# was tried with real weights.
LEARNING_RATES = {"Full": 1e-8, "LoRA": 1e-6, "DoRA": 1e-6}


class SecondStage(Strict):
    """The super-resolution stage of a cascade.

    Attributes:
        base_resolution: side length of the images of the base model in pixels.
        learning_rate: of this stage.
    """

    model: BaseModelRef
    base_resolution: int
    learning_rate: float

    @property
    def resolution(self) -> int:
        """Side length of its images in pixels."""
        return SCALE * self.base_resolution


def second_stage(
    base: BaseModelRef, training: Training, native_resolution: int | None, rate: float
) -> SecondStage | None:
    """The super-resolution stage of a job.

    Args:
        native_resolution: side length of the images that the base model was trained on; None if it is not known.
        rate: learning rate of the base model.

    Raises:
        UserError: the resolution of the job is not that of the stage.
    """
    model = base.super_resolution
    if model is None:
        return None
    base_resolution = native_resolution or (training.resolution or SCALE * PIXEL_SPACE.resolution) // SCALE
    if native_resolution and training.resolution not in (None, SCALE * base_resolution):
        rule = f"is not {SCALE} x {base_resolution}: the super-resolution model enlarges images of {base_resolution} px"
        raise UserError(ValidationIssue("spec.training.resolution", training.resolution, rule, "remove it"))
    return SecondStage(
        model=BaseModelRef(id=model.id, revision=model.revision),
        base_resolution=base_resolution,
        learning_rate=training.learning_rate or LEARNING_RATES.get(training.method, rate),
    )
