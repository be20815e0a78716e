"""Messages between the driver, the Ray Train controller and the training workers.

Imports no heavy libraries: the controller and the progress actor unpickle these types and must not wait until torch
and diffusers are imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dreambooth_trainer.cluster.memory_errors import InsufficientMemoryError
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.candidates import Candidates
from dreambooth_trainer.store.validations import Validations

RECORDS_FILE = "losses.jsonl"


@dataclass(frozen=True)
class StepRecord:
    """Losses of one optimizer step: a line of losses.jsonl.

    Attributes:
        step: counted from 1.
        loss: instance_loss + loss weight x prior_loss (paper, equation 2).
        prior_loss: of the mode of prior preservation; None for mode None.
        world_size: number of training processes. It changes in an elastic job.
    """

    step: int
    loss: float
    instance_loss: float
    prior_loss: float | None
    learning_rate: float
    world_size: int


@dataclass(frozen=True)
class History:
    """The records of all steps since the last message of this type, for experiment trackers.

    The first one after a start has the records of all steps before.
    """

    records: tuple[StepRecord, ...]


@dataclass(frozen=True)
class FatalWorkerError:
    """An error after which a restart of the workers cannot succeed.

    Attributes:
        message: one sentence for the user.
        error: the exception to raise in the driver; None for a failure that may not occur on another machine.
    """

    message: str
    error: InsufficientMemoryError | None = None


@dataclass(frozen=True)
class CheckpointSaved:
    """A checkpoint that Ray Train has registered: training continues from it after an interruption.

    Attributes:
        step: optimizer steps done.
    """

    step: int


WorkerMessage = StepRecord | History | FatalWorkerError | CheckpointSaved
ReportCallback = Callable[[WorkerMessage], object]
"""Sends a message to the driver. `ray.get` of the returned object waits until it has arrived."""


@dataclass(frozen=True)
class LoopConfig:
    """Configuration of the training loop of a worker.

    Attributes:
        data: the cache that the encode phase wrote.
        num_threads: CPU threads per worker.
        report: called on rank 0 with the record of each step, and on any worker with a fatal error.
        validations: where to write the images of `spec.training.validation`; None without it.
        candidates: where to write the weights of validated steps; None unless one of them is selected.
        initial_adapter: file with the adapter to start from; None for the initial values of the method.
    """

    plan: Plan
    data: Path
    num_threads: int
    report: ReportCallback
    validations: Validations | None = None
    candidates: Candidates | None = None
    initial_adapter: Path | None = None


@dataclass(frozen=True)
class TrainingProgress:
    """The last message of each kind; None before the first one."""

    record: StepRecord | None = None
    saved: CheckpointSaved | None = None
    error: FatalWorkerError | None = None


class ProgressActor:
    """A Ray actor that keeps the last messages of the workers for the driver, and the records for its trackers."""

    def __init__(self) -> None:
        self._progress, self._history = TrainingProgress(), list[StepRecord]()

    def put(self, message: WorkerMessage) -> None:
        """Replace the last message of this kind. The first fatal error is kept."""
        match message:
            case StepRecord():
                self._progress = replace(self._progress, record=message)
            case History():
                self._history += message.records
            case CheckpointSaved():
                self._progress = replace(self._progress, saved=message)
            case FatalWorkerError():
                self._progress = replace(self._progress, error=self._progress.error or message)

    def last(self) -> TrainingProgress:
        """The last messages."""
        return self._progress

    def take_history(self) -> list[StepRecord]:
        """The records of all `History` messages since the last call."""
        taken, self._history = self._history, []
        return taken


def report_to(progress_actor: Any, message: WorkerMessage) -> object:
    """Send a message to a `ProgressActor` without waiting; returns Ray's reference of the call."""
    return progress_actor.put.remote(message)


def read_records(checkpoint: Path) -> list[StepRecord]:
    """The records of all steps up to a checkpoint."""
    return [StepRecord(**json.loads(line)) for line in (checkpoint / RECORDS_FILE).read_text().splitlines()]
