"""Messages between the driver, the Ray Train controller and the training workers.

Imports no heavy library: the controller and the progress actor unpickle these types and must not wait for torch and
diffusers to be imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_trainer.cluster.memory_errors import InsufficientMemoryError
from dreambooth_trainer.planning.plan import Plan

RECORDS_FILE = "losses.jsonl"


@dataclass(frozen=True)
class Record:
    """One optimizer step, as it goes to the driver and into losses.jsonl."""

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float


@dataclass(frozen=True)
class FatalWorkerError:
    """Why a worker cannot go on and another could not either: no use in starting the workers anew.

    Attributes:
        message: one sentence for the user.
        error: what to raise in the driver; None for a failure that another machine may not have.
    """

    message: str
    error: InsufficientMemoryError | None = None


@dataclass(frozen=True)
class LoopConfig:
    """What a worker needs to know.

    Attributes:
        data: the cache that the encode phase wrote.
        threads: CPU threads a worker may use.
        tell: called on the first worker with each step's record, and on any with why it stopped.
    """

    plan: Plan
    data: Path
    threads: int
    tell: Callable[[Record | FatalWorkerError], object]


class ProgressActor:
    """A Ray actor: the latest of a running training, for whoever asks."""

    def __init__(self) -> None:
        self.latest: Record | FatalWorkerError | None = None

    def post(self, news: Record | FatalWorkerError) -> None:
        """Replace the latest; that a worker stopped is the last."""
        if not isinstance(self.latest, FatalWorkerError):
            self.latest = news

    def read(self) -> Record | FatalWorkerError | None:
        """The latest."""
        return self.latest


def post(progress_actor: Any, news: Record | FatalWorkerError) -> object:
    """Put something on a progress_actor, waiting for nothing; `ray.get` of what is returned waits until it is there."""
    return progress_actor.post.remote(news)


def read_records(checkpoint: Path) -> list[Record]:
    """The record of every step up to a checkpoint."""
    return [Record(**json.loads(line)) for line in (checkpoint / RECORDS_FILE).read_text().splitlines()]
