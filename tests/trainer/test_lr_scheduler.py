"""spec.training.lrScheduler: each value is a schedule of diffusers."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, get_args

import pytest
import torch

from dreambooth_api.training import Training
from dreambooth_trainer.training.model import build_lr_scheduler, seek

NAMES: tuple[str, ...] = get_args(Training.model_fields["lr_scheduler"].annotation)
STEPS, WARMUP = 10, 2


@pytest.mark.parametrize("name", NAMES)
def test_rate_warms_up_and_then_follows_the_schedule(name: str) -> None:
    training = Training(lr_scheduler=name, warmup_steps=WARMUP)  # pyright: ignore[reportArgumentType]
    plan: Any = SimpleNamespace(spec=SimpleNamespace(training=training), steps=STEPS)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = build_lr_scheduler(plan, optimizer)
    rates: list[float] = []
    for _ in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates[: WARMUP + 1] == [0, 0.5, 1]
    assert (rates[-1] == 1) == (name == "Constant")


@pytest.mark.parametrize("name", NAMES)
def test_seeking_gives_the_rates_of_stepping(name: str) -> None:
    training = Training(lr_scheduler=name, warmup_steps=WARMUP)  # pyright: ignore[reportArgumentType]
    plan: Any = SimpleNamespace(spec=SimpleNamespace(training=training), steps=STEPS)
    stepped, sought = (torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=1e-3) for _ in range(2))
    first, second = build_lr_scheduler(plan, stepped), build_lr_scheduler(plan, sought)
    for step in range(STEPS + 1):
        seek(second, step)
        assert sought.param_groups[0]["lr"] == stepped.param_groups[0]["lr"]
        assert second.get_last_lr() == first.get_last_lr()
        stepped.step()
        first.step()
