"""Events, as `kubectl describe` shows them. A repeated event increments a count."""

from __future__ import annotations

import asyncio
import datetime
import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import EVENTS, Json, Key

log = logging.getLogger(__name__)
_MAX_MESSAGE_LENGTH = 1000  # the API server accepts 1024 bytes
_MAX_CONCURRENT = 4
_MAX_WAITING = 10_000


@dataclass(frozen=True, slots=True)
class Event:
    """An event about an object. `reason` is a CamelCase word."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Recorder:
    """Writes events with `component` as their source, in the background: they must not delay a reconciliation."""

    def __init__(self, api: Api, component: str) -> None:
        self._api = api
        self._component = component
        self._slots = asyncio.Semaphore(_MAX_CONCURRENT)
        self._tasks: set[asyncio.Task[None]] = set()

    def record(self, about: Json, event: Event) -> None:
        """Record an event about the object that the reference `about` identifies.

        An event that cannot be written is logged and dropped.
        """
        if len(self._tasks) >= _MAX_WAITING:
            log.warning("event %s of %s dropped: too many events wait", event.reason, about.get("name"))
            return
        task = asyncio.get_running_loop().create_task(self._record(about, event))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def flush(self) -> None:
        """Wait until the events recorded so far are written or dropped."""
        await asyncio.gather(*self._tasks)

    async def _record(self, about: Json, event: Event) -> None:
        try:
            async with self._slots:
                await self._write(about, event)
        except (ApiError, *CONNECTION_ERRORS) as error:
            log.warning("event %s of %s not written: %s", event.reason, about.get("name"), error)

    async def _write(self, about: Json, event: Event) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        identity = f"{about.get('uid')}|{event.type}|{event.reason}|{event.message}"
        # As usual in Kubernetes, events of cluster-scoped objects are in namespace "default".
        namespace = about.get("namespace") or "default"
        name = f"{about['name'][:200]}.{hashlib.sha256(identity.encode()).hexdigest()[:16]}"
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:_MAX_MESSAGE_LENGTH],
            "source": {"component": self._component},
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._api.create(EVENTS, body)
        except ApiError as error:
            if not error.is_already_exists:
                raise
            earlier = await self._api.get(EVENTS, Key(namespace, name))
            update: Json = {"count": (earlier.get("count") or 1) + 1, "lastTimestamp": now}
            await self._api.merge(EVENTS, Key(namespace, name), update)
