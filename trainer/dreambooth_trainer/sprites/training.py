"""What the three training loops share: exact resume, learning-rate shape, progress.

A step's randomness comes from a generator seeded by the step's number, so a run that was interrupted and
resumed draws the same batches and the same noise as one that was not.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch.optim import AdamW, Optimizer
from torch.optim.lr_scheduler import LRScheduler
from transformers import get_wsd_schedule

DECAY = 0.4
"""Share of the steps over which the learning rate falls."""
Report = Callable[[int, str], None]
"""Called after a step with its number (from 1) and a few measured words."""


def step_generator(seed: int, step: int) -> torch.Generator:
    """The one source of randomness of one step."""
    return torch.Generator().manual_seed(seed * 10_000_019 + step)


def make_optimizer(
    parameters: list[torch.nn.Parameter], rate: float, steps: int, weight_decay: float = 1e-3
) -> tuple[Optimizer, LRScheduler]:
    """AdamW with a short warm-up, then `rate`, then a cosine to zero over the last `DECAY` of the steps.

    Until the decay begins nothing depends on `steps`, so a run may be lengthened by resuming it with more.
    """
    optimizer = AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=weight_decay)
    warmup = min(200, max(1, steps // 10))
    schedule = get_wsd_schedule(
        optimizer, num_warmup_steps=warmup, num_decay_steps=round(DECAY * steps), num_training_steps=steps
    )
    return optimizer, schedule


class Stateful(Protocol):
    """A module, an optimizer, a schedule, an average of weights."""

    def state_dict(self) -> Any: ...
    def load_state_dict(self, state_dict: Any) -> Any: ...


class Checkpoint:
    """The parts of a run, in one file that is always complete."""

    def __init__(self, path: Path, **parts: Stateful) -> None:
        self.path = path
        self.parts = parts

    def restore(self) -> int:
        """Load the parts, if there is a file; returns the number of steps already done."""
        if not self.path.exists():
            return 0
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state["step"]

    def save(self, step: int) -> None:
        """Write the parts; the previous file stays until this one is complete."""
        partial = self.path.with_suffix(".partial")
        torch.save({**{name: part.state_dict() for name, part in self.parts.items()}, "step": step}, partial)
        partial.replace(self.path)


@contextmanager
def progress(stage: str, start: int, steps: int, console: Console) -> Iterator[Report]:
    """A live bar on a terminal; elsewhere a line every two per cent of the steps."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    every = max(1, steps // 50)
    with Progress(*columns, TextColumn("{task.fields[said]}"), console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task(stage, total=steps, completed=start, said="")

        def report(step: int, said: str) -> None:
            bar.update(task, completed=step, said=said)
            if not console.is_terminal and (step % every == 0 or step == steps):
                console.print(f"{stage} {step}/{steps} {said}", highlight=False)

        yield report
