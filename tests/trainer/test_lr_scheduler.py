"""spec.training.lrScheduler: each value is a schedule of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch
from diffusers.optimization import get_scheduler

from dreambooth_api.training import Training
from dreambooth_trainer.training.loop import _lr_scheduler_name

NAMES: tuple[str, ...] = get_args(Training.model_fields["lr_scheduler"].annotation)
STEPS, WARMUP = 10, 2


@pytest.mark.parametrize("name", NAMES)
def test_rate_warms_up_and_then_follows_the_schedule(name: str) -> None:
    training = Training(lr_scheduler=name)  # pyright: ignore[reportArgumentType]
    plan: Any = SimpleNamespace(spec=SimpleNamespace(training=training))
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler: Any = get_scheduler(
        _lr_scheduler_name(plan), optimizer, num_warmup_steps=WARMUP, num_training_steps=STEPS
    )
    rates: list[float] = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[: WARMUP + 1] == [0, 0.5, 1]
    assert (rates[-1] == 1) == (name == "Constant")
