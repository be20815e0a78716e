"""The number of images per batch of image generation, from the memory of the device and the model."""

from __future__ import annotations

import pytest
from test_plan import make_plan

from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.fit import with_sampling_batch
from dreambooth_trainer.planning.memory import GIB, ModelSize
from dreambooth_trainer.planning.plan import Plan


def half_a_gib_per_image(plan: Plan, images: int) -> ModelSize:
    """A model with weights of 2 GiB in bf16."""
    return ModelSize(
        trainable=0,
        frozen=0,
        total=GIB,
        encoders=0,
        activations=0,
        backward=0,
        sampling=plan.sampling_batch_size * GIB // 2,
        encoding=0,
    )


@pytest.mark.parametrize(
    ("gpus", "memory", "batch"),
    [(1, 80, 32), (1, 19, 32), (1, 18, 16), (1, 8, 8), (1, 4.5, 2), (1, 1, 1), (0, 80, 4), (0, 4.5, 2), (1, None, 4)],
)
def test_the_largest_batch_that_fits_is_planned(gpus: int, memory: float | None, batch: int) -> None:
    hardware = Hardware(gpus, "A100", None if memory is None else memory * GIB, bf16=True)
    plan = make_plan({"model": {"id": "some/model"}}, gpus=gpus, precision="bf16")
    assert with_sampling_batch(plan, hardware, half_a_gib_per_image).sampling_batch_size == batch
