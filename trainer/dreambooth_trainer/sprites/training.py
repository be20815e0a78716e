"""Shared by the training loops: the loop itself, exact resume, the learning rate schedule, and progress.

The random generator of each step is seeded by the step number, so that a resumed run has the same batches and noise as
one without interruptions.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.nn.utils import clip_grad_norm_
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_wsd_schedule

DECAY = 0.4
"""Share of the steps over which the learning rate decays."""
SAVE_EVERY = 250  # steps
Report = Callable[[int, str], None]
"""Called after each step with its number (from 1) and its metrics as text."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The random generator of a step."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step)


def make_optimizer(
    parameters: list[torch.nn.Parameter], rate: float, steps: int, weight_decay: float = 1e-3
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with a short warmup, then `rate`, then cosine decay to zero over the last `DECAY` of the steps.

    Before the decay starts, nothing depends on `steps`, so a run can be extended by resuming it with more steps.
    """
    optimizer = AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    warmup = min(200, max(1, steps // 10))
    schedule = get_wsd_schedule(
        optimizer, num_warmup_steps=warmup, num_decay_steps=round(DECAY * steps), num_training_steps=steps
    )
    return optimizer, schedule


class Stateful(Protocol):
    """A module, an optimizer, a learning rate schedule, or an EMA of weights."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


class Checkpoint:
    """The state of several objects in one file, which is written atomically."""

    def __init__(self, path: Path, **parts: Stateful) -> None:
        self.path = path
        self.parts = parts

    def restore(self) -> int:
        """Load the state if the file exists, and return the number of completed steps."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int) -> None:
        """Write the state after a step."""
        partial = self.path.with_suffix(".partial")
        torch.save({**{name: part.state_dict() for name, part in self.parts.items()}, "step": step}, partial)
        partial.replace(self.path)


@contextmanager
def progress(stage: str, start: int, steps: int, console: Console) -> Iterator[Report]:
    """Show a progress bar on a terminal, otherwise print a line for every 2% of the steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    every = max(1, steps // 50)
    with Progress(
        *columns, TextColumn("{task.fields[metrics]}"), console=console, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task(stage, total=steps, completed=start, metrics="")

        def report(step: int, metrics: str) -> None:
            bar.update(task, completed=step, metrics=metrics)
            if not console.is_terminal and (step % every == 0 or step == steps):
                console.print(f"{stage} {step}/{steps} {metrics}", highlight=False)

        yield report


def train(
    stage: str,
    checkpoint: Checkpoint,
    optimization: tuple[Optimizer, LRScheduler],
    steps: int,
    seed: int,
    console: Console,
    loss_of: Callable[[torch.Generator], tuple[torch.Tensor, str]],
    *,
    clip: float | None = 1.0,
) -> None:
    """Train from the last checkpoint to the last step, and save a checkpoint every `SAVE_EVERY` steps.

    Args:
        optimization: optimizer and schedule, which are parts of the checkpoint.
        loss_of: the loss of a batch that is drawn with a generator, and its metrics as text.
        clip: maximum norm of the gradients; None for no maximum.
    """
    optimizer, schedule = optimization
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    start = checkpoint.restore()
    with progress(stage, start, steps, console) as report:
        for step in range(start + 1, steps + 1):
            loss, metrics = loss_of(step_generator(seed, step))
            optimizer.zero_grad()
            loss.backward()
            if clip is not None:
                clip_grad_norm_(parameters, clip)
            optimizer.step()
            schedule.step()
            report(step, metrics)
            if step % SAVE_EVERY == 0 or step == steps:
                checkpoint.save(step)
