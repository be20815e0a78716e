"""Weights of validated steps, one of which is published: `step-000100/trained-weights.safetensors`.

The workers write them, and the driver deletes those that cannot be selected any more. They are on the volume that all
workers mount, so they are still there after an interruption.
"""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path

from dreambooth_trainer.store.folder import JobFolder, atomic_write

_STEP = re.compile(r"step-(\d{6,})")


@dataclass(frozen=True)
class Candidates:
    """The candidates of one training.

    Attributes:
        root: absolute path, because workers run in another folder.
    """

    root: Path

    def folder(self, step: int) -> Path:
        """The folder of a step's weights, which exists only completely."""
        return self.root / f"step-{step:06d}"

    def has(self, step: int) -> bool:
        """Whether there are weights of a step."""
        return any(self.folder(step).glob("*.safetensors"))

    def steps(self) -> list[int]:
        """The steps with weights, in order."""
        names = [path.name for path in self.root.iterdir()] if self.root.exists() else []
        found = sorted(int(match[1]) for name in names if (match := _STEP.fullmatch(name)))
        return [step for step in found if self.has(step)]

    def discard(self, step: int) -> None:
        """Delete the weights of a step."""
        shutil.rmtree(self.folder(step), ignore_errors=True)

    @property
    def _stop(self) -> Path:
        return self.root / "stop"

    def request_stop(self) -> None:
        """Let the workers end the training, because no later step can be selected."""
        if not self._stop.exists():
            atomic_write(self._stop, "")

    def stop_requested(self) -> bool:
        """Whether the training is to end."""
        return self._stop.exists()

    @property
    def _given_up(self) -> Path:
        return self.root / "given-up"

    def give_up(self) -> None:
        """Delete all weights, and save no others in this training: no step can be selected."""
        atomic_write(self._given_up, "")
        for step in self.steps():
            self.discard(step)

    def given_up(self) -> bool:
        """Whether no step can be selected."""
        return self._given_up.exists()


def candidates_of(folder: JobFolder, train_key: str) -> Candidates:
    """The candidates of a job.

    They are deleted with its checkpoints.

    Args:
        train_key: digest of what the trained weights depend on.
    """
    return Candidates(folder.checkpoints.resolve() / "validated" / train_key[:16])
