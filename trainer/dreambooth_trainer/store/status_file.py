"""The status of a job that runs on this machine, in a file of its folder, as an operator writes it to the object.

The file has the form of the object, and the job's last events. The process of the job replaces it as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Literal

from pydantic import JsonValue, ValidationError

from dreambooth_api.environment import ATTEMPT
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.merge import merge
from dreambooth_api.status import (
    COMPLETED_BY,
    PHASE_MESSAGES,
    Condition,
    ConditionType,
    Failure,
    JobStatus,
    Phase,
    TrainerPhase,
    fit_message,
    legal_reason,
    parse_status,
    summarize,
)
from dreambooth_trainer.progress.forwarding import ForwardingReporter
from dreambooth_trainer.store.folder import JobFolder, atomic_write

# Between two changes of the file within a phase.
INTERVAL_SECONDS = 0.5
MAX_EVENTS = 100
SUSPENDED_MESSAGE = "The job was interrupted. It continues from its last checkpoint when it is resumed."
_Type = Literal["Normal", "Warning"]


@dataclass
class JobRecord:
    """The content of the file.

    Attributes:
        events: the latest ones, oldest first, with fields of Kubernetes' events.
    """

    name: str
    created: datetime
    status: JobStatus = field(default_factory=JobStatus)
    events: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])

    def record(self, kind: _Type, reason: str, message: str) -> None:
        """Add an event."""
        event = {"lastTimestamp": _now().isoformat(), "type": kind, "reason": reason, "message": fit_message(message)}
        self.events = [*self.events, event][-MAX_EVENTS:]

    def set_phase(self, phase: Phase, message: str, **fields: object) -> None:
        """Set phase and message, and other fields of the status."""
        update = {"phase": phase, "message": summarize(message), **fields}
        self.status = self.status.model_copy(update=update)

    def set_condition(self, kind: ConditionType, status: Literal["True", "False"], reason: str, message: str) -> None:
        """Set a condition."""
        others = [condition for condition in self.status.conditions if condition.type != kind]
        condition = Condition(
            type=kind,
            status=status,
            reason=legal_reason(reason),
            message=fit_message(message),
            last_transition_time=_now(),
        )
        order = list(ConditionType)
        conditions = sorted([*others, condition], key=lambda c: order.index(ConditionType(c.type)))
        self.status = self.status.model_copy(update={"conditions": conditions})

    def to_object(self) -> dict[str, Any]:
        """The object, with its events."""
        metadata = {"name": self.name, "namespace": "local", "creationTimestamp": self.created.isoformat()}
        status = self.status.model_dump(mode="json", by_alias=True, exclude_none=True)
        return {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "status": status, "events": self.events}


def read_record(folder: JobFolder) -> JobRecord | None:
    """The content of the file in a job's folder; None if it is missing or damaged."""
    try:
        content: Any = json.loads(folder.status.read_text())
        metadata = content["metadata"]
        created = datetime.fromisoformat(metadata["creationTimestamp"])
        return JobRecord(str(metadata["name"]), created, parse_status(content["status"]), list(content["events"]))
    except (OSError, ValueError, TypeError, KeyError, ValidationError):
        return None


def write_record(folder: JobFolder, record: JobRecord) -> None:
    """Replace the file."""
    atomic_write(folder.status, json.dumps(record.to_object(), indent=1))


def starting_record(folder: JobFolder, name: str) -> JobRecord:
    """The record of a job that is about to start, with what earlier attempts did."""
    record = read_record(folder) or JobRecord(name, _now())
    # Phases that are complete are reported again.
    record.set_phase(Phase.STARTING, "The process is starting.", conditions=[], completion_time=None)
    return record


@dataclass
class StatusReporter(ForwardingReporter):
    """Forwards progress to another reporter, and writes the status of the job to its file. Use it as a context."""

    folder: JobFolder
    job: DreamBoothJob
    _record: JobRecord = field(init=False)
    _written: float = -INTERVAL_SECONDS

    def __enter__(self) -> StatusReporter:
        self._record = starting_record(self.folder, self.job.metadata.name)
        status = self._record.status
        attempt = int(number) if (number := os.environ.get(ATTEMPT, "")).isdecimal() else status.attempts + 1
        self._record.set_phase(
            Phase.RUNNING,
            "The trainer is starting.",
            attempts=attempt,
            start_time=status.start_time or _now(),
            active_since=_now(),
        )
        self._record.record("Normal", "AttemptStarted", f"Attempt {attempt} runs in process {os.getpid()}.")
        self._write()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Write the outcome."""
        report = self._record.status.report
        if kind is None:
            self._end(Phase.SUCCEEDED, "Succeeded", self._published, completion_time=_now())
            self._record.set_condition(ConditionType.SUCCEEDED, "True", "Succeeded", self._published)
        elif not issubclass(kind, Exception):
            self._end(Phase.SUSPENDED, "Suspended", SUSPENDED_MESSAGE)
        else:
            failure = (report and report.failure) or Failure(reason=kind.__name__)
            failures = self._record.status.failures + 1
            self._end(Phase.FAILED, failure.reason, failure.message, "Warning", last_failure=failure, failures=failures)
            self._record.set_condition(ConditionType.FAILED, "True", failure.reason, failure.message)
        self._write()

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        super().finished(name, result)
        for kind, phase in COMPLETED_BY:
            if phase is name:
                self._record.set_condition(kind, "True", *self._completion(name))
        self._record.record("Normal", f"{name}Completed", f"Phase {name} completed.")
        self._write()

    def changed(self, *, urgent: bool) -> None:
        status, now = self._record.status, _now()
        reported = merge(status, self.message, status.attempts, now)
        fields = {name: getattr(reported, name) for name in type(reported).model_fields}
        message = PHASE_MESSAGES.get(self.message.phase or "", status.message)
        self._record.set_phase(Phase.RUNNING, message, **fields)
        if urgent or time.monotonic() - self._written >= INTERVAL_SECONDS:
            self._write()

    def _completion(self, phase: TrainerPhase) -> tuple[str, str]:
        """Reason and message of the condition that a phase completes, as an operator sets them."""
        spec = self.job.spec
        if phase is TrainerPhase.PUBLISH:
            return "Published", self._published
        disabled = {
            TrainerPhase.CLASS_IMAGES: not spec.uses_class_images,
            TrainerPhase.EVALUATE: not spec.evaluation.enabled,
        }
        return "Skipped" if disabled.get(phase) else "Done", ""

    @property
    def _published(self) -> str:
        output = self._record.status.output
        return f"The model was published to {output.uri if output else self.folder.model}."

    def _end(self, phase: Phase, reason: str, message: str, kind: _Type = "Normal", **fields: object) -> None:
        status = self._record.status
        seconds = (_now() - status.active_since).total_seconds() if status.active_since else 0
        active = status.active_seconds + round(seconds)
        self._record.set_phase(phase, message, active_seconds=active, active_since=None, **fields)
        self._record.record(kind, reason, message)

    def _write(self) -> None:
        self._written = time.monotonic()
        with contextlib.suppress(OSError):  # reporting must not fail a run
            write_record(self.folder, self._record)


def _now() -> datetime:
    return datetime.now(UTC)
