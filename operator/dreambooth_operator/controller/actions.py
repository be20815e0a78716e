"""The writes that a decision can ask for, as values. The reconciler carries them out."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_api.status import JobStatus
from dreambooth_operator.machinery.events import Event
from dreambooth_operator.machinery.resources import Json, Key, Resource


@dataclass(frozen=True, slots=True)
class WriteStatus:
    """Replace the controller's fields of the status, unless the job has changed since it was observed."""

    status: JobStatus
    events: tuple[Event, ...]


@dataclass(frozen=True, slots=True)
class Create:
    """Create a child. An existing child of the same name is left unchanged."""

    resource: Resource
    obj: Json


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a child in the foreground. With a uid, only that very object is deleted."""

    resource: Resource
    key: Key
    uid: str


@dataclass(frozen=True, slots=True)
class SetFinalizer:
    """Add the erase finalizer to the job, or remove it."""

    present: bool


@dataclass(frozen=True, slots=True)
class DeleteJob:
    """Delete the DreamBoothJob itself."""


Action = WriteStatus | Create | Delete | SetFinalizer | DeleteJob


@dataclass(frozen=True, slots=True)
class Decision:
    """The actions, in order, and after how many seconds to reconcile again (None: on the next change).

    The order makes interruptions harmless: the status records what is about to be done before it is done, so the next
    reconciliation continues or repeats it.
    """

    actions: tuple[Action, ...] = ()
    requeue_after_seconds: float | None = None
