"""The memory that a plan counts is what a real step allocates, for every family and what its methods train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examplelosses import FAMILIES, PROMPTS
from familycases import open_all
from PIL import Image
from test_plan import make_plan

from dreambooth_trainer.families.base import live_text_encoders
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.methods.tokens import add_tokens
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.memory_count import LiveBytes, count_size
from dreambooth_trainer.training.model import build_module

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

SIDE = 32
CASES: dict[str, dict[str, Any]] = {
    "Full": {},
    "LoRA with text encoders": {"method": "LoRA", "textEncoder": {"train": True}},
    "checkpointing": {"method": "LoRA", "gradientCheckpointing": True},
    "PivotalTuning": {"method": "PivotalTuning", "textualInversion": {"vectors": 2}},
}
GATE = ("Full", "PivotalTuning")


@pytest.mark.parametrize(
    "case", [case if case in GATE else pytest.param(case, marks=pytest.mark.long) for case in CASES]
)
@pytest.mark.parametrize("name", [*FAMILIES, "tiny_super_resolution_model"])
def test_the_count_is_within_ten_percent_of_a_real_step(request: pytest.FixtureRequest, name: str, case: str) -> None:
    folder: Path = request.getfixturevalue(name)
    family, training = open_family(folder), CASES[case]
    if "textualInversion" in training and not family.extensible_text_encoders:
        pytest.skip("the family has no new tokens")
    if "textEncoder" in training and not family.trainable_text_encoders:
        pytest.skip("the family has no text encoder that can be trained")
    plan = make_plan({"model": {"id": str(folder)}, "training": {"resolution": SIDE, **training}})
    size = count_size(plan, folder, len(PROMPTS), encoding_batch=1)
    _, stage = open_all(folder)
    add_tokens(stage, plan)
    pixels = np.random.default_rng(0).integers(0, 255, (len(PROMPTS), SIDE, SIDE, 3), dtype=np.uint8)
    examples = stage.encode_images([Image.fromarray(image) for image in pixels])
    examples |= stage.encode_prompts(PROMPTS, live_text_encoders(family, plan))
    # The super-resolution stage gets the embeddings of the base model.
    examples = {key: torch.randn(value.shape) if value.is_meta else value for key, value in examples.items()}
    if "text_mask" in examples:  # the longest prompts are counted
        examples["text_mask"] = torch.ones_like(examples["text_mask"])
    noise = {key: torch.randn(len(PROMPTS), *shape) for key, shape in stage.noise_shapes(examples).items()}
    module = build_module(plan)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    assert size.trainable == sum(parameter.numel() for parameter in parameters)
    with LiveBytes(module.parameters()) as memory:
        losses = module(Batch(examples, noise, torch.rand(len(PROMPTS)), 1))
        activations = memory.live
        losses[0].backward()
    gradients = sum(parameter.grad.nbytes for parameter in parameters if parameter.grad is not None)
    assert size.activations == pytest.approx(activations, rel=0.1)
    assert size.backward == pytest.approx(max(0, memory.peak - gradients), rel=0.1)
