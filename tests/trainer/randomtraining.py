"""Trained weights without training: random values for what a method would train."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from test_plan import make_plan
from torch import Tensor, nn

from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.methods.base import Result
from dreambooth_trainer.methods.registry import open_method


def random_weights(module: nn.Module, generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: 0.1 * torch.randn(parameter.shape, generator=generator)
        for name, parameter in module.named_parameters()
        if parameter.requires_grad
    }


def random_result(model: Path, training: dict[str, Any], names: Sequence[str]) -> Result:
    """The result of a method for the modules `names` of a diffusers folder."""
    plan = make_plan({"model": {"id": str(model)}, "training": training})
    family, method = open_family(model), open_method(plan.spec.training.method)
    stage, generator = family.open(model, names), torch.Generator().manual_seed(1)
    method.prepare(stage, plan, family.lora_target_modules())
    return method.result(stage, plan, {name: random_weights(stage.modules[name], generator) for name in names})
