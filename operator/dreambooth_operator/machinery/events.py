"""Events that `kubectl describe` shows: the same thing said again raises a count, not a second event."""

from __future__ import annotations

import datetime
import hashlib
import logging
from dataclasses import dataclass
from typing import Literal

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import EVENTS, Json, Key

log = logging.getLogger(__name__)
_MOST_MESSAGE = 1000  # the API server takes 1024 bytes


@dataclass(frozen=True, slots=True)
class Event:
    """Something worth telling about an object; `reason` is one CamelCase word, `message` a sentence."""

    type: Literal["Normal", "Warning"]
    reason: str
    message: str


class Recorder:
    """Writes events in the name of `component`."""

    def __init__(self, api: Api, component: str) -> None:
        self._api = api
        self._component = component

    async def record(self, about: Json, event: Event) -> None:
        """Tell `event` about the object that the reference `about` names (apiVersion, kind, namespace, name, uid).

        An event that cannot be written is logged and forgotten: it must not hold up the work.
        """
        try:
            await self._write(about, event)
        except (ApiError, *CONNECTION_ERRORS) as error:
            log.warning("event %s of %s not written: %s", event.reason, about.get("name"), error)

    async def _write(self, about: Json, event: Event) -> None:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
        said = f"{about.get('uid')}|{event.type}|{event.reason}|{event.message}"
        # Cluster-scoped objects' events live in "default", as everywhere in Kubernetes.
        namespace = about.get("namespace") or "default"
        name = f"{about['name'][:200]}.{hashlib.sha256(said.encode()).hexdigest()[:16]}"
        body: Json = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": namespace},
            "involvedObject": about,
            "type": event.type,
            "reason": event.reason,
            "message": event.message[:_MOST_MESSAGE],
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
            again: Json = {"count": (earlier.get("count") or 1) + 1, "lastTimestamp": now}
            await self._api.merge(EVENTS, Key(namespace, name), again)
