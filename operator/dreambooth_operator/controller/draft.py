"""A decision in the making: the status as it will be, the events that tell it, the actions that follow.

Values in, values out: a draft starts from a job and a time, and ends as a `Decision`.
"""

from __future__ import annotations

from dataclasses import dataclass
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
)
from dreambooth_operator.controller.states import check_transition
from dreambooth_operator.controller.views import Job
from dreambooth_operator.machinery.events import Event
from dreambooth_operator.machinery.resources import Json, Key, Resource

_MOST_EVENT_REASON = 128  # the API server takes no more


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replace what the controller owns of the status, if the job is still the one that was looked at."""

    status: JobStatus
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Create:
    """Create a child; one that is there already is left as it is."""

    resource: Resource
    obj: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a child, its own children first, if it is still the one with this uid ("" for any)."""

    resource: Resource
    key: Key
    uid: str


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Put our finalizer on the job, or take it off."""

    present: bool


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """The job's time to live is over."""


Action = WriteStatus | Create | Delete | SetFinalizer | DeleteJob


@dataclass(frozen=True, slots=True)
class Decision:
    """What to do, in this order, and in how many seconds to look again (None: when something changes).

    The order is what makes an interruption harmless: the status says what is about to be done before it
    is done, so whoever comes next continues or repeats, and never does another thing.
    """

    actions: tuple[Action, ...] = ()
    again_seconds: float | None = None


class Draft:
    """See the module. `status` is what has been decided so far."""

    def __init__(self, job: Job, now: datetime) -> None:
        self.job = job
        self.now = now.replace(microsecond=0)  # what the API server keeps
        self._before = job.status
        self._changes: dict[str, Any] = {}
        self._conditions = {c.type: c for c in job.status.conditions}
        self._events: list[Event] = []
        self._actions: list[Action] = []
        self._again: float | None = None

    @property
    def phase(self) -> Phase:
        """Where the job will be."""
        return self._changes.get("phase", self._before.phase)

    def set(self, **fields: object) -> None:
        """Set fields of the status, by their Python names."""
        self._changes |= fields

    def move(self, phase: Phase) -> None:
        """Go to `phase`. Raises ValueError if that is not legal from where the job was."""
        check_transition(self._before.phase, phase)
        self._changes["phase"] = phase

    def condition(
        self, kind: ConditionType, status: Literal["True", "False", "Unknown"], reason: str, message: str = ""
    ) -> None:
        """Observe something, with any text as reason and message; its time changes only when its status does."""
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

    def event(self, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None:
        """Tell something once; it is sent only after the status is written."""
        self._events.append(Event(kind, legal_reason(reason)[:_MOST_EVENT_REASON], printable(message)))

    def do(self, *actions: Action) -> None:
        """Do something, after what was asked for before."""
        self._actions += actions

    def look_again(self, seconds: float) -> None:
        """Look again in so many seconds at the latest."""
        self._again = max(0.0, seconds if self._again is None else min(self._again, seconds))

    def decision(self) -> Decision:
        """What has been decided: the status first if it changes, then the actions."""
        order = list(ConditionType)
        conditions = sorted(self._conditions.values(), key=lambda c: order.index(c.type))
        self._changes |= {"conditions": conditions, "observed_generation": self.job.generation}
        after = self._before.model_copy(update=self._changes)
        first = () if after == self._before else (WriteStatus(after, tuple(self._events)),)
        return Decision((*first, *self._actions), self._again)
