"""Builds the model of a plan and its optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from diffusers.optimization import get_scheduler
from pydantic.alias_generators import to_snake
from safetensors.torch import load_file
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from dreambooth_trainer.families.base import modules_in_training
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.module import DreamBoothModule, prepare_module


def build_module(plan: Plan, initial_adapter: Path | None = None) -> DreamBoothModule:
    """The model of a plan, prepared by its fine-tuning method; fp32, on the CPU.

    Args:
        initial_adapter: file with the adapter of the denoiser that training starts from.
    """
    folder = local_folder(plan.model)
    family = open_family(folder)
    module = prepare_module(plan, family, family.open(folder, modules_in_training(family, plan)))
    if initial_adapter is not None:
        # PEFT, which only adapters need, takes each process seconds to import.
        from dreambooth_trainer.methods.lora import load_adapter

        load_adapter(module.denoiser, load_file(initial_adapter))
    return module


def build_optimizer(plan: Plan, module: DreamBoothModule) -> Optimizer:
    """AdamW over the trainable parameters. The fused kernel updates all of them in one pass, also on CPUs."""
    weight_decay = plan.spec.training.weight_decay
    groups = [{"params": group.parameters, "lr": group.learning_rate} for group in module.groups]
    if plan.spec.training.optimizer == "AdamW8bit":
        from bitsandbytes.optim import AdamW8bit  # pyright: ignore[reportMissingImports] - an extra

        return AdamW8bit(groups, weight_decay=weight_decay)
    return torch.optim.AdamW(groups, weight_decay=weight_decay, fused=True)


def build_lr_scheduler(plan: Plan, optimizer: Optimizer) -> LambdaLR:
    """The learning rate schedule: each group's rate as a function of the number of steps done."""
    name = to_snake(plan.spec.training.lr_scheduler)
    scheduler: Any = get_scheduler(
        "constant_with_warmup" if name == "constant" else name,
        optimizer,
        num_warmup_steps=plan.spec.training.warmup_steps,
        num_training_steps=plan.steps,
    )
    return scheduler


def seek(scheduler: LambdaLR, step: int) -> None:
    """Set the state of a scheduler, and the learning rates of its optimizer, to those after `step` steps."""
    rates = [base * factor(step) for base, factor in zip(scheduler.base_lrs, scheduler.lr_lambdas, strict=True)]
    scheduler.last_epoch, scheduler._last_lr = step, rates
    for group, rate in zip(scheduler.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
