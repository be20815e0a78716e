"""A local mirror of one collection: list, then watch, for ever.

What it promises: after `synced`, `cache` equals the collection as it was at some recent moment, each
object's successive states are seen in order, and `on_change` is called after the cache has changed.
A cut connection continues from the last resource version; an expired one (410) lists anew, and what
vanished meanwhile is reported like a deletion. It keeps only what `project` makes of an object.
An object that `project` or `on_change` fails on is logged and left out; the others are not affected.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from typing import Generic, NoReturn, TypeVar

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError, parsed
from dreambooth_operator.machinery.resources import Json, Key, Resource, key_of

T = TypeVar("T")
log = logging.getLogger(__name__)
_FIRST_BACK_OFF_SECONDS = 0.1
_MOST_BACK_OFF_SECONDS = 30.0


class Reflector(Generic[T]):
    """See the module.

    Args:
        project: what to keep of an object; it may change its argument.
        on_change: called with the key of each object that came, changed or went.
        selector: a label selector, empty for all.
        page: how many objects one answer of a list holds; parsed, they are ten times what is kept of them.
    """

    def __init__(
        self,
        api: Api,
        resource: Resource,
        *,
        project: Callable[[Json], T],
        on_change: Callable[[Key], None],
        namespace: str = "",
        selector: str = "",
        page: int = 100,
    ) -> None:
        self._api = api
        self._path = resource.path(namespace)
        self.resource = resource
        self._project = project
        self._on_change = on_change
        self._query = {"labelSelector": selector} if selector else {}
        self._page = page
        self._version: str | None = None  # where to watch from; None means list first
        self.cache: dict[Key, T] = {}
        self.synced = asyncio.Event()
        self.lists = 0
        self.watches = 0

    async def run(self) -> NoReturn:
        """Mirror for ever; errors of the server and of the connection are logged and tried again.

        Anything else that it raises is a bug: the mirror is no longer true then, and must not be used.
        """
        back_off = _FIRST_BACK_OFF_SECONDS
        while True:
            try:
                if self._version is None:
                    self._version = await self._list()
                    self.synced.set()
                await self._watch()
                back_off = _FIRST_BACK_OFF_SECONDS
                # An orderly end; a pause all the same, should the server end each watch at once.
                await asyncio.sleep(back_off * _jitter())
            except (ApiError, *CONNECTION_ERRORS) as error:
                if isinstance(error, ApiError) and not error.is_transient:
                    self._version = None  # 410, or the kind is not there (yet): list anew
                log.info("%s: %s", self._path, str(error) or type(error).__name__)
                await asyncio.sleep(back_off * _jitter())
                back_off = min(_MOST_BACK_OFF_SECONDS, back_off * 2)

    async def _list(self) -> str:
        """Replace the cache page by page; returns the version to watch from."""
        self.lists += 1
        query = {**self._query, "limit": str(self._page)}
        seen: set[Key] = set()
        while True:
            answer = await self._api.request("GET", self._path, query=query)
            for obj in answer["items"]:
                key = key_of(obj)
                seen.add(key)
                self._keep(key, obj)
                await asyncio.sleep(0)  # others get their turn between any two objects
            version: str = answer["metadata"]["resourceVersion"]
            if not (token := answer["metadata"].get("continue")):
                break
            query["continue"] = token
        for key in self.cache.keys() - seen:
            self._forget(key)
        return version

    async def _watch(self) -> None:
        """Follow changes until the server ends the watch or the connection breaks."""
        self.watches += 1
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "resourceVersion": self._version or "",
            "timeoutSeconds": str(round(480 * _jitter())),  # not all watches of a fleet at once
        }
        async for line in self._api.lines(self._path, query):
            event = await parsed(line)
            obj = event["object"]
            if event["type"] == "ERROR":
                raise ApiError(obj.get("code", 500), obj.get("reason", "Unknown"), obj.get("message", ""))
            self._version = obj["metadata"]["resourceVersion"]
            if event["type"] == "BOOKMARK":
                continue
            if event["type"] == "DELETED":
                self._forget(key_of(obj))
            else:
                self._keep(key_of(obj), obj)
            await asyncio.sleep(0)

    def _keep(self, key: Key, obj: Json) -> None:
        try:
            self.cache[key] = self._project(obj)
        except Exception:  # a bug of ours, or an object that nobody foresaw: it costs only itself
            log.exception("%s: %s cannot be read, and is left out", self._path, key)
            self.cache.pop(key, None)
        self._tell(key)

    def _forget(self, key: Key) -> None:
        self.cache.pop(key, None)
        self._tell(key)

    def _tell(self, key: Key) -> None:
        try:
            self._on_change(key)
        except Exception:  # as above
            log.exception("%s: the change of %s is not handled", self._path, key)


def _jitter() -> float:
    """A factor that keeps a fleet from doing the same at the same time."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
