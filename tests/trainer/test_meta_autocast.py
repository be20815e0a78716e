"""Memory of a training step under autocast, counted on the meta device, which PyTorch's autocast does not support."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from test_memory_count import TEXT, UNET, write_model
from test_plan import make_plan
from torch._subclasses.fake_tensor import FakeTensorMode

from dreambooth_trainer.families.base import trained_modules
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.planning.memory import GIB
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.memory_count import LiveBytes, count_size, fused_attention
from dreambooth_trainer.training.module import DreamBoothModule, prepare_module
from dreambooth_trainer.training.plain_engine import cast_frozen_matrices

pytestmark = pytest.mark.trainer

SETTINGS: list[dict[str, Any]] = [
    {},
    {"method": "LoRA"},
    {"method": "DoRA"},
    {"textEncoder": {"train": True}},
    {"gradientCheckpointing": True},
]


def plan_of(model: Path, training: dict[str, Any], *, gpus: int, precision: str = "bf16", side: int = 64) -> Any:
    spec = {"model": {"id": str(model)}, "training": {"resolution": side, **training}}
    return make_plan(spec, gpus=gpus, precision=precision)


def real_module(plan: Any, folder: Path) -> DreamBoothModule:
    """The module of a plan with new weights, as the engine of a single process prepares it for bf16."""
    family = open_family(folder)
    names = trained_modules(family, text_encoders=plan.train_text_encoder)
    module = prepare_module(plan, family, family.open(folder, names, empty=True))
    cast_frozen_matrices(module, torch.bfloat16)
    return module


def batch_of(module: DreamBoothModule, plan: Any) -> Batch:
    latents, live = torch.zeros(2, 4, 16, 16), plan.train_text_encoder
    prompts = {"input_ids": torch.zeros(2, 16, dtype=torch.long)} if live else {"text_embeds": torch.zeros(2, 16, 32)}
    examples = {"latent_mean": latents, "latent_std": latents, **prompts}
    return Batch(examples, {"latent": latents, "noise": latents}, torch.tensor([0.1, 0.2]), 1)


@pytest.mark.parametrize("training", SETTINGS, ids=str)
def test_the_count_is_what_a_real_step_allocates_under_autocast(tiny_model: Path, training: dict[str, Any]) -> None:
    plan = plan_of(tiny_model, training, gpus=0)
    module = real_module(plan, tiny_model)
    batch = batch_of(module, plan)
    with LiveBytes(module.parameters()) as memory:
        with torch.autocast("cpu", torch.bfloat16):
            losses = module(batch)
        activations = memory.live
        losses[0].backward()
    gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    size = count_size(plan, tiny_model, 2, encoding_batch=1)
    assert size.activations == pytest.approx(activations, rel=0.05)
    assert size.backward == pytest.approx(max(0, memory.peak - gradients), rel=0.1)


@contextmanager
def cuda_autocast() -> Iterator[None]:
    """CUDA's autocast without CUDA. `torch.autocast` would turn itself off."""
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()
        torch.set_autocast_enabled("cuda", False)


# PEFT moves adapters to a device, which FakeTensor does not support.
@pytest.mark.parametrize("training", [one for one in SETTINGS if "method" not in one], ids=str)
def test_activations_are_those_of_autocast_on_cuda(tiny_model: Path, training: dict[str, Any]) -> None:
    plan = plan_of(tiny_model, training, gpus=1)
    # Tensors that have a device and a shape, but no data. Only the forward pass runs without a GPU.
    with FakeTensorMode(allow_non_fake_inputs=True), fused_attention():
        with torch.device("cuda"):
            module = real_module(plan, tiny_model)
            batch = batch_of(module, plan)
        with LiveBytes(module.parameters()) as memory, cuda_autocast():
            losses = module(batch)
        activations = memory.live
        assert losses.requires_grad
    size = count_size(plan, tiny_model, 2, encoding_batch=1)
    assert size.activations == pytest.approx(activations, rel=0.05)
    on_cpu = count_size(plan_of(tiny_model, training, gpus=0), tiny_model, 2, encoding_batch=1)
    assert size.activations > on_cpu.activations, "norms are in fp32 on CUDA"


def test_deepspeed_trains_in_pure_bf16(tmp_path: Path) -> None:
    model = write_model(tmp_path, UNET, TEXT)
    plain = plan_of(model, {}, gpus=1, side=512)
    zero = plan_of(model, {"deepspeed": {"offloadOptimizer": True}}, gpus=1, side=512)
    assert zero.needs_deepspeed(1)
    assert count_size(zero, model, 1, encoding_batch=1).activations / GIB == pytest.approx(0.92, rel=0.06)
    counted = count_size(plain, model, 1, encoding_batch=1)
    # Autocast keeps casts of the weights, and the inputs of norms and activation functions in fp32.
    casts = 2 * counted.trainable
    assert counted.activations > casts + 1.15 * 0.92 * GIB
