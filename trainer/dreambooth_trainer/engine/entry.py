"""What driver, Ray Train's controller and the workers tell each other.

Light on purpose: the controller and the bulletin unpickle it, and must not wait for torch and diffusers to be imported.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dreambooth_trainer.plan import Plan

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
class LoopConfig:
    """What a worker needs to know.

    Attributes:
        data: the cache that the encode phase wrote.
        threads: CPU threads a worker may use.
        tell: called on the first worker with each step's record.
    """

    plan: Plan
    data: Path
    threads: int
    tell: Callable[[Record], None]


class Bulletin:
    """A Ray actor: the latest record of a running training, for whoever asks."""

    def __init__(self) -> None:
        self.latest: Record | None = None

    def post(self, record: Record) -> None:
        """Replace the latest record."""
        self.latest = record

    def read(self) -> Record | None:
        """The latest record."""
        return self.latest


def post(bulletin: Any, record: Record) -> None:
    """Put a record on a bulletin, waiting for nothing."""
    bulletin.post.remote(record)


def read_records(checkpoint: Path) -> list[Record]:
    """The record of every step up to a checkpoint."""
    return [Record(**json.loads(line)) for line in (checkpoint / RECORDS_FILE).read_text().splitlines()]
