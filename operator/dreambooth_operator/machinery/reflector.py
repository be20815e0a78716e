"""A local cache of one collection, kept up to date by a watch.

The watch begins with all existing objects, in a stream that ends with a bookmark. Kubernetes calls that a streaming
list. The API server sends the objects from its cache one by one; pages of a list can take it several times the CPU
time. A server that does not support it refuses the request, and the collection is listed in pages before each watch.

Once `synced` is set, `cache` equals the collection at some recent time, the states of each object are observed in
order, and `on_change` is called after each change of the cache. The cache contains only what `project` returns for an
object; an update that leaves it as it is does not count as a change. An interrupted watch continues from the last
resource version. If that version has expired (410), the collection is listed again, and objects that have disappeared
count as deleted.
An object for which `project` or `on_change` fails is logged and skipped; other objects are not affected.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Generic, NoReturn, TypeVar

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError, parsed
from dreambooth_operator.machinery.partial import PartialParser
from dreambooth_operator.machinery.resources import Json, Key, Resource, key_of, part

T = TypeVar("T")
log = logging.getLogger(__name__)
_MIN_BACKOFF_SECONDS = 0.1
_MAX_BACKOFF_SECONDS = 30.0
_PAGE = 100  # objects; parsing a page takes time in which no other task runs
_INITIAL_EVENTS_END = "k8s.io/initial-events-end"  # annotation of the bookmark after a streaming list


class Reflector(Generic[T]):
    """The cache of a collection.

    Args:
        project: returns what is cached of an object. It may modify its argument.
        on_change: called with the key of each object that was added, changed or deleted.
        selector: a label selector; empty for all objects.
        parser: parses the fields that `project` reads; None for all.
        page: maximum number of objects per response of a list that is not streamed.
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
        parser: PartialParser | None = None,
        page: int = _PAGE,
    ) -> None:
        self._api = api
        self._namespace = namespace
        self._path = resource.path(namespace)
        self.resource = resource
        self._project = project
        self._on_change = on_change
        self._query = {"labelSelector": selector} if selector else {}
        self._parser = parser
        self._page = page
        self._version: str | None = None  # the version to watch from; None if a list is needed
        self._streams = True  # until the server has refused to stream a list
        self.cache: dict[Key, T] = {}
        self.synced = asyncio.Event()
        self.lists = 0
        self.watches = 0
        self.unavailable: datetime | None = None  # when a list or watch last failed before it delivered anything

    def also_in(self, namespace: str) -> Reflector[T]:
        """A reflector that fills the same cache with the objects of another namespace."""
        other = copy.copy(self)
        other._namespace, other._path = namespace, self.resource.path(namespace)
        other._version, other.synced = None, asyncio.Event()
        return other

    async def run(self) -> NoReturn:
        """Run forever. Errors of the server and of the connection are logged and retried.

        Any other exception is a bug: the cache is then no longer up to date and must not be used.
        """
        backoff = _MIN_BACKOFF_SECONDS
        while True:
            watched = None
            try:
                if self._version is None and not self._streams:
                    self._version = await self._list()
                    self.synced.set()
                watched = self._version
                await self._watch()
                backoff = _MIN_BACKOFF_SECONDS
                # The watch ended regularly. The delay protects a server that ends each watch at once.
                await asyncio.sleep(backoff * _jitter())
            except (ApiError, *CONNECTION_ERRORS) as error:
                if self._version == watched:  # nothing was delivered
                    self.unavailable = datetime.now(UTC)
                if isinstance(error, ApiError) and self._version is None and error.status in (400, 422, 504):
                    self._streams = False  # 504: a server whose cache cannot catch up, or a list that was cut off
                if isinstance(error, ApiError) and not error.is_transient:
                    self._version = None  # 410, or the kind does not exist (yet): list again
                log.info("%s: %s", self._path, str(error) or type(error).__name__)
                await asyncio.sleep(backoff * _jitter())
                backoff = min(_MAX_BACKOFF_SECONDS, backoff * 2)

    async def _list(self) -> str:
        """Update the cache page by page. Returns the version to watch from."""
        self.lists += 1
        query = {**self._query, "limit": str(self._page)}
        seen: set[Key] = set()
        while True:
            answer = await self._api.request("GET", self._path, query=query, partial=self._parser and self._parser.page)
            for obj in answer["items"]:
                key = key_of(obj)
                seen.add(key)
                self._store(key, obj)
                await asyncio.sleep(0)  # let other tasks run between two objects
            version: str = answer["metadata"]["resourceVersion"]
            if not (token := answer["metadata"].get("continue")):
                break
            query["continue"] = token
        self._remove_all_but(seen)
        return version

    async def _watch(self) -> None:
        """Apply changes until the server ends the watch or the connection is lost. Without a version, list before."""
        self.watches += 1
        seen: set[Key] | None = None  # the objects of an unfinished list
        query = {
            **self._query,
            "watch": "true",
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(round(480 * _jitter())),  # spreads the reconnects of many clients
        }
        if self._version is None:
            self.lists += 1
            seen = set()
            query |= {"sendInitialEvents": "true", "resourceVersionMatch": "NotOlderThan"}
        else:
            query["resourceVersion"] = self._version
        async for line in self._api.lines(self._path, query):
            event = await parsed(line, self._parser and self._parser.event)
            kind, obj = event["type"], event["object"]
            if kind == "ERROR":
                raise ApiError(obj.get("code", 500), obj.get("reason", "Unknown"), obj.get("message", ""))
            version: str = obj["metadata"]["resourceVersion"]
            if kind != "BOOKMARK":
                self._apply(kind, obj, seen)
            elif seen is not None and _INITIAL_EVENTS_END in part(obj, "metadata", "annotations"):
                self._remove_all_but(seen)
                seen = None
                self.synced.set()
            if seen is None:
                self._version = version
            await asyncio.sleep(0)
        if seen is not None:  # neither an end of the watch nor a list
            raise ApiError(504, "Timeout", "the streaming list ended before its bookmark")

    def _apply(self, kind: str, obj: Json, seen: set[Key] | None) -> None:
        """Apply a change to the cache. A key is added to `seen`, or removed from it, as if `seen` were the cache."""
        key = key_of(obj)
        if kind == "DELETED":
            self._remove(key)
            if seen is not None:
                seen.discard(key)
        else:
            self._store(key, obj)
            if seen is not None:
                seen.add(key)

    def _remove_all_but(self, listed: set[Key]) -> None:
        """Remove the objects that a list does not contain. Reflectors of other namespaces may share the cache."""
        for key in [key for key in self.cache.keys() - listed if self._namespace in ("", key.namespace)]:
            self._remove(key)

    def _store(self, key: Key, obj: Json) -> None:
        old = self.cache.get(key)
        try:
            self.cache[key] = new = self._project(obj)
            if new == old:
                return
        except Exception:  # a bug, or an unforeseen object, which must affect only itself
            log.exception("%s: %s cannot be read and is skipped", self._path, key)
            self.cache.pop(key, None)
        self._notify(key)

    def _remove(self, key: Key) -> None:
        self.cache.pop(key, None)
        self._notify(key)

    def _notify(self, key: Key) -> None:
        try:
            self._on_change(key)
        except Exception:  # as in _store
            log.exception("%s: the change of %s was not handled", self._path, key)


def _jitter() -> float:
    """A random factor that spreads the requests of many clients over time."""
    return random.uniform(0.5, 1.0)  # noqa: S311 - spreads load
