"""Experiment trackers of a training: TensorBoard, Weights & Biases and MLflow.

They run on the driver. A tracker that fails is disabled for the rest of the run, with a warning, and does not fail the
job. What each has logged is stored, so that a training that continues adds to the same run and repeats nothing.
All calls must be made by one thread, see `tracker_runs.py`.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from dreambooth_trainer.phases.tracker_runs import RUNS, Files, Run
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.redact import redact
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.training.messages import StepRecord


@dataclass
class Logged:
    """What one tracker has logged.

    Attributes:
        run: ID of the tracker's run; empty if it has none.
        step: last step whose losses were logged.
        validations: steps whose images were logged.
    """

    run: str = ""
    step: int = 0
    validations: list[int] = field(default_factory=list[int])


class Trackers:
    """The trackers of a job that work.

    Args:
        key: digest of what the trained weights depend on. Another training is another run.
        warn: called with a sentence about a tracker that failed.
    """

    def __init__(self, plan: Plan, folder: JobFolder, key: str, warn: Callable[[str], None]) -> None:
        self._folder, self._key, self._warn = folder.trackers, key, warn
        self._runs: dict[str, Run] = {}
        self._logged, self._written = self._read(), ""
        from accelerate import PartialState

        PartialState(cpu=True)  # the loggers of accelerate require it
        for name in plan.spec.training.trackers:
            logged = self._logged.setdefault(name, Logged())
            with self._warned(name):
                self._runs[name] = RUNS[name](self._folder, plan, key, logged.run)
                if not logged.run:
                    self._runs[name].settings(_settings(plan))
                    logged.run = self._runs[name].id
                if note := self._runs[name].note:
                    warn(note)
            self._write()

    def log_losses(self, records: Sequence[StepRecord]) -> None:
        """Log the losses and learning rates of steps that are not logged yet."""
        for name, run in list(self._runs.items()):
            logged = self._logged[name]
            with self._warned(name):
                for record in records:
                    if record.step > logged.step:
                        run.scalars(record.step, _values(record))
                        logged.step = record.step
        self._write()

    def log_validation(self, step: int, files: Files, scores: Mapping[str, float]) -> None:
        """Log the images of a step, and their scores."""
        for name, run in list(self._runs.items()):
            logged = self._logged[name]
            with self._warned(name):
                if step not in logged.validations:
                    run.images(step, files)
                    if scores:
                        run.scalars(step, {f"validation/{metric}": value for metric, value in scores.items()})
                    logged.validations.append(step)
        self._write()

    def close(self, *, succeeded: bool) -> None:
        """End all runs. A training that continues later opens them again."""
        for name, run in list(self._runs.items()):
            with self._warned(name):
                run.close(succeeded=succeeded)

    @contextlib.contextmanager
    def _warned(self, name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # of any library, and of any server
            self._runs.pop(name, None)
            reason = redact(str(error).strip().partition("\n")[0]) or type(error).__name__  # URLs have passwords
            self._warn(f"reportTo: {name} failed and receives no more data in this run: {reason}")

    @property
    def _state(self) -> Path:
        return self._folder / "logged.json"

    def _read(self) -> dict[str, Logged]:
        try:
            content: dict[str, Any] = json.loads(self._state.read_text())
        except (FileNotFoundError, ValueError):
            return {}
        if content.get("key") != self._key:
            return {}
        return {name: Logged(**logged) for name, logged in content["logged"].items()}

    def _write(self) -> None:
        content = json.dumps({"key": self._key, "logged": {name: asdict(one) for name, one in self._logged.items()}})
        if content != self._written:
            atomic_write(self._state, content)
            self._written = content


def _values(record: StepRecord) -> dict[str, float]:
    values = {
        "loss": record.loss,
        "instance_loss": record.instance_loss,
        "prior_loss": record.prior_loss,
        "learning_rate": record.learning_rate,
    }
    return {name: value for name, value in values.items() if value is not None}


def _settings(plan: Plan) -> dict[str, str]:
    """Settings of the job that say nothing about files, servers or people."""
    training = plan.spec.training
    return {
        "job": plan.job.metadata.name,
        "method": training.method,
        "steps": str(plan.steps),
        "learning_rate": f"{plan.learning_rate:g}",
        "batch_size": str(plan.batch_size),
        "resolution": str(plan.resolution),
        "precision": plan.precision,
        "prior_preservation": plan.spec.preservation,
        "class_images": str(plan.num_class_images if plan.spec.uses_class_images else 0),
        "seed": str(training.seed),
    }
