"""The number of images per batch of image generation, from the memory of the device and the model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from test_plan import make_plan

from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.fit import with_sampling_batch
from dreambooth_trainer.planning.memory import GIB, ModelSize
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.sampling import generate
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig
from dreambooth_trainer.store.image_store import ImageStore


def half_a_gib_per_image(plan: Plan, images: int) -> ModelSize:
    """A model with weights of 2 GiB in bf16."""
    return ModelSize(
        trainable=0,
        frozen=0,
        pipeline=2 * GIB,
        encoders=0,
        loaded=0,
        assembled=0,
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


def test_a_batch_that_does_not_fit_into_the_gpu_is_halved(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    limit = 2

    def sample(loaded: Any, config: Any, requests: Sequence[ImageRequest]) -> list[Image.Image]:
        sizes.append(len(requests))
        if len(requests) > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return [Image.new("RGB", (32, 32)) for _ in requests]

    monkeypatch.setattr(generate, "sample_batch", sample)
    store, model = ImageStore(str(tmp_path)), BaseModelRef(id=str(tiny_model))
    config = SamplingConfig(SamplerSettings(steps=2, guidance_scale=2.0), 32, "fp32", batch_size=8)
    requests = [ImageRequest(f"{number}", "a dog", number) for number in range(5)]
    assert generate.generate_batch(model, config, store, requests) == 5
    assert store.names() == {request.name for request in requests}
    assert sizes == [5, 2, 3, 1, 2]
    limit = 0
    with pytest.raises(torch.OutOfMemoryError):
        generate.generate_batch(model, config, store, requests)
