"""Builder of a `Decision`: collects changes of the status, events and actions. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any, Literal

from dreambooth_api.status import (
    Condition,
    ConditionType,
    JobStatus,
    Phase,
    fit_message,
    legal_reason,
    printable,
    summarize,
)
from dreambooth_operator.controller.actions import Action, Decision, Delete, WriteStatus
from dreambooth_operator.controller.lifecycle import check_transition
from dreambooth_operator.controller.observed import Job, RayJob
from dreambooth_operator.machinery.events import Event
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import RAY_JOBS

_MAX_EVENT_REASON_LENGTH = 128  # limit of the API server


class DecisionBuilder:
    """Starts from an observed job and the current time. `job.status` stays the observed status."""

    def __init__(self, job: Job, now: datetime) -> None:
        self.job = job
        self.now = now.replace(microsecond=0)  # the API server stores whole seconds
        self._changes: dict[str, Any] = {}
        self._conditions: dict[str, Condition] = {c.type: c for c in job.status.conditions}
        self._events: list[Event] = []
        self._first: list[Action] = []
        self._actions: list[Action] = []
        self._requeue_after_seconds: float | None = None

    @property
    def status(self) -> JobStatus:
        """The status as observed."""
        return self.job.status

    @property
    def phase(self) -> Phase:
        """The phase, with the changes made so far."""
        return self._changes.get("phase", self.status.phase)

    @property
    def message(self) -> str:
        """`status.message`, with the changes made so far."""
        return self._changes.get("message", self.status.message)

    def condition(self, kind: ConditionType) -> Condition | None:
        """The condition of a type, with the changes made so far."""
        return self._conditions.get(kind)

    def set_fields(self, **fields: object) -> None:
        """Set fields of the status by their Python names."""
        self._changes |= fields

    def set_phase(self, phase: Phase, message: str) -> None:
        """Set the phase, and `status.message`, which explains it. Raises ValueError if the transition is not legal."""
        check_transition(self.status.phase, phase)
        self._changes |= {"phase": phase, "message": summarize(message)}

    def set_condition(
        self, kind: ConditionType, status: Literal["True", "False", "Unknown"], reason: str, message: str = ""
    ) -> None:
        """Accepts any text as reason and message. The transition time changes only if the status does."""
        old = self._conditions.get(kind)
        since = old.last_transition_time if old and old.status == status else self.now
        self._conditions[kind] = Condition(
            type=kind,
            status=status,
            reason=legal_reason(reason),
            message=fit_message(message),
            observed_generation=self.job.generation,
            last_transition_time=since,
        )

    def remove_condition(self, kind: ConditionType) -> None:
        """Remove a condition that exists only while it is true."""
        self._conditions.pop(kind, None)

    def record_event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """The event is sent only after the status has been written."""
        self._events.append(Event(kind, legal_reason(reason)[:_MAX_EVENT_REASON_LENGTH], printable(message)))

    def add(self, *actions: Action) -> None:
        """Append actions to those added before."""
        self._actions += actions

    def add_before_write(self, *actions: Action) -> None:
        """Append actions that precede the status write, which records that they are done."""
        self._first += actions

    def delete_ray_jobs(self, ray_jobs: Iterable[RayJob]) -> None:
        """Delete RayJobs that this job owns, except those that are already being deleted."""
        for ray_job in ray_jobs:
            if not ray_job.deleting and ray_job.owner_uid == self.job.uid:
                self.add(Delete(RAY_JOBS, Key(self.job.key.namespace, ray_job.name), ray_job.uid))

    def requeue_after(self, seconds: float) -> None:
        """Reconcile again after at most this time."""
        earlier = self._requeue_after_seconds
        self._requeue_after_seconds = max(0.0, seconds if earlier is None else min(earlier, seconds))

    def build(self) -> Decision:
        """The decision: the actions that precede the status write, the write if the status changes, the others."""
        order: list[str] = list(ConditionType)
        known = [self._conditions[kind] for kind in order if kind in self._conditions]
        # Of a newer operator. It may lead again after this one.
        unknown = [condition for kind, condition in self._conditions.items() if kind not in order]
        conditions = known + unknown
        changes = {**self._changes, "conditions": conditions, "observed_generation": self.job.generation}
        status = self.status.model_copy(update=changes)
        write = () if status == self.status else (WriteStatus(status, tuple(self._events)),)
        return Decision((*self._first, *write, *self._actions), self._requeue_after_seconds)
