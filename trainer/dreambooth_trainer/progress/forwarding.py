"""Collects the progress of a run in one message, which subclasses deliver, and forwards it to another reporter."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

from pydantic import JsonValue

from dreambooth_api import environment
from dreambooth_api.metrics import METRICS
from dreambooth_api.model import BaseModelRef
from dreambooth_api.progress import ProgressMessage, parse_fields
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.progress.console import PhaseProgress, Reporter

# The operator closes an attempt that does not report for spec.runPolicy.progressDeadlineSeconds.
PROGRESS_INTERVAL_SECONDS = 60.0
_TRAINING_FACTS = ("loss", "samples", "world_size", "saved_step", "selected_step")


def external_uri(uri: str) -> str:
    """Replace the mount path of the job's folder by the volume's URI. Other URIs are not changed."""
    mounted, external = os.environ.get(environment.OUT), os.environ.get(environment.OUT_SHOWN)
    return external + uri.removeprefix(mounted) if mounted and external and uri.startswith(mounted) else uri


@dataclass
class ForwardingReporter:
    """Forwards progress to another reporter, and collects it in `message`."""

    inner: Reporter
    message: ProgressMessage = field(default_factory=ProgressMessage, kw_only=True)

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        self.update(phase=name)
        with self.inner.phase(name) as inner:
            yield _ForwardedProgress(self, inner, name)

    def skipped(self, name: TrainerPhase) -> None:
        self.inner.skipped(name)

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        self.inner.finished(name, result)
        match name:
            case TrainerPhase.CLASS_IMAGES:
                counts = ("wanted", "reused", "generated", "provided")
                self.update(class_images={key: result[key] for key in counts if result.get(key) is not None})
            case TrainerPhase.EVALUATE:
                scores: JsonValue = {metric.name: result[metric.name] for metric in METRICS if metric.name in result}
                self.update(scores=scores, subject_scores=result.get("subjects") or None)
            case TrainerPhase.PUBLISH:
                self.update(output={"uri": external_uri(str(result["uri"])), "digest": result["digest"]})

    def pinned(self, model: BaseModelRef) -> None:
        """Report the commits of a model's stages from the Hub, with which later attempts are started."""
        second = model.super_resolution
        self.update(model_commit=model.revision, super_resolution_commit=second and second.revision)

    def failed(self, reason: str, message: str, *, retryable: bool) -> None:
        """Report why the run failed, in the last message."""
        self.update(failure={"reason": reason, "message": message, "retryable": retryable})

    def note(self, text: str) -> None:
        self.inner.note(text)

    def changed(self, *, urgent: bool) -> None:
        """Called when the message has changed. One that is not urgent may be delayed."""
        raise NotImplementedError

    def update(self, *, urgent: bool = True, **changes: JsonValue) -> None:
        """Change fields of the message."""
        # Invalid values are dropped, because reporting must not fail a run.
        self.message, _ = parse_fields({**self.message.model_dump(), **changes})
        self.changed(urgent=urgent)


@dataclass
class _ForwardedProgress:
    reporter: ForwardingReporter
    inner: PhaseProgress
    name: TrainerPhase
    steps: int = 0
    first: tuple[float, int] | None = None
    sent: float = field(default_factory=time.monotonic)

    def total(self, count: int) -> None:
        self.steps = count
        self.inner.total(count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.inner.done(count, **facts)
        now = time.monotonic()
        # Before the first step, training may generate images. An earlier attempt may have reported later steps.
        if self.name is not TrainerPhase.TRAIN or count == 0:
            if now - self.sent >= PROGRESS_INTERVAL_SECONDS:
                self.sent = now
                self.reporter.update(urgent=False)
            return
        self.first = self.first or (now, count)
        seconds, completed = now - self.first[0], count - self.first[1]
        rate = completed / seconds if seconds and completed else None
        changes: dict[str, JsonValue] = {"step": count, "steps": self.steps}
        changes |= {name: facts[name] for name in _TRAINING_FACTS if name in facts}
        if rate is not None:
            changes |= {"steps_per_second": round(rate, 3), "eta_seconds": round((self.steps - count) / rate)}
        self.reporter.update(urgent=False, **changes)
