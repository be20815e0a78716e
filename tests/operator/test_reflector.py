"""Streaming lists of a reflector, against an API server in memory that answers as the test says."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import cast

import pytest

from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.partial import PartialParser
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, Key

Event = tuple[str, Json]


def event(kind: str, name: str, version: int) -> Event:
    return kind, {"metadata": {"namespace": "n", "name": name, "resourceVersion": str(version)}}


def bookmark(version: int, *, end: bool) -> Event:
    annotations = {"k8s.io/initial-events-end": "true"} if end else {}
    return "BOOKMARK", {"metadata": {"resourceVersion": str(version), "annotations": annotations}}


class Server:
    """Each watch gets the next answer: an error, or events after which the connection is lost. The last one stays."""

    def __init__(self, *answers: Exception | list[Event], listed: tuple[str, ...] = ()) -> None:
        self.answers = list(answers)
        self.listed = listed
        self.pages = 0
        self.queries: list[dict[str, str]] = []
        self.served = asyncio.Event()

    async def request(self, *_: object, **__: object) -> Json:
        self.pages += 1
        items = [event("", name, 5)[1] for name in self.listed]
        return {"items": items, "metadata": {"resourceVersion": "5"}}

    async def lines(self, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        assert path == CONFIG_MAPS.path("n")
        self.queries.append(query)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for kind, obj in answer:
            if kind == "END":
                return
            yield json.dumps({"type": kind, "object": obj}).encode()
        if self.answers:
            raise ConnectionResetError
        self.served.set()
        await asyncio.Event().wait()


@asynccontextmanager
async def mirrored(server: Server, *, cached: tuple[str, ...] = ()) -> AsyncIterator[Reflector[str]]:
    """A reflector that has received all answers. It starts with the objects `cached`."""
    reflector = Reflector(
        cast("Api", server),
        CONFIG_MAPS,
        project=lambda obj: obj["metadata"].pop("resourceVersion"),  # it may modify the object
        on_change=lambda _: None,
        namespace="n",
        parser=PartialParser({"metadata": dict.fromkeys(("namespace", "name", "resourceVersion", "annotations"))}),
    )
    reflector.cache |= {Key("n", name): "0" for name in cached}
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(20):
        await server.served.wait()
    yield reflector
    task.cancel()


def content(reflector: Reflector[str]) -> dict[str, str]:
    return {key.name: version for key, version in reflector.cache.items()}


async def test_streaming_list_ends_with_its_bookmark() -> None:
    start = [event("ADDED", "a", 1), event("ADDED", "b", 2), bookmark(3, end=False)]
    async with mirrored(Server(start), cached=("gone",)) as reflector:
        assert content(reflector) == {"gone": "0", "a": "1", "b": "2"}
        assert not reflector.synced.is_set(), "more objects may follow"
    async with mirrored(Server([*start, bookmark(4, end=True)]), cached=("gone",)) as reflector:
        assert content(reflector) == {"a": "1", "b": "2"}, "an object that is not listed has been deleted"
        assert reflector.synced.is_set()
        assert reflector.lists == 1


async def test_changes_during_and_after_a_streaming_list_are_applied() -> None:
    start = [event("ADDED", "a", 1), event("ADDED", "b", 2), event("DELETED", "a", 3), event("MODIFIED", "b", 4)]
    after = [event("ADDED", "c", 6), event("DELETED", "b", 7)]
    async with mirrored(Server([*start, bookmark(5, end=True), *after])) as reflector:
        assert content(reflector) == {"c": "6"}


async def test_object_that_was_deleted_during_a_streaming_list_is_not_kept() -> None:
    start = [event("ADDED", "a", 1), event("DELETED", "a", 2), bookmark(3, end=True)]
    async with mirrored(Server(start), cached=("a",)) as reflector:
        assert content(reflector) == {}


async def test_interrupted_streaming_list_starts_again() -> None:
    server = Server([event("ADDED", "a", 1), event("ADDED", "b", 2)], [event("ADDED", "b", 2), bookmark(4, end=True)])
    async with mirrored(server) as reflector:
        assert content(reflector) == {"b": "2"}
        assert [query.get("sendInitialEvents") for query in server.queries] == ["true", "true"]
        assert not any("resourceVersion" in query for query in server.queries)


async def test_interrupted_watch_continues_after_a_streaming_list() -> None:
    server = Server([event("ADDED", "a", 1), bookmark(4, end=True)], [event("ADDED", "b", 6)])
    async with mirrored(server) as reflector:
        assert content(reflector) == {"a": "1", "b": "6"}
        assert server.queries[1]["resourceVersion"] == "4"
        assert "sendInitialEvents" not in server.queries[1]
        assert (reflector.lists, reflector.watches) == (1, 2)


async def test_expired_version_is_followed_by_a_streaming_list() -> None:
    expired: Event = ("ERROR", {"code": 410, "reason": "Expired", "message": "too old"})
    first, again = [event("ADDED", "a", 1), bookmark(4, end=True)], [event("ADDED", "b", 9), bookmark(9, end=True)]
    server = Server(first, [expired], again)
    async with mirrored(server) as reflector:
        assert content(reflector) == {"b": "9"}
        assert server.pages == 0


async def test_streaming_list_that_the_server_ends_early_is_followed_by_pages() -> None:
    server = Server([event("ADDED", "a", 1), ("END", {})], [event("ADDED", "b", 6)], listed=("a",))
    async with mirrored(server) as reflector:
        assert content(reflector) == {"a": "5", "b": "6"}
        assert server.pages == 1


@pytest.mark.parametrize("status", [400, 422, 504])
async def test_server_that_refuses_streaming_lists_is_asked_for_pages(status: int) -> None:
    refused = ApiError(status, "Invalid", "sendInitialEvents is forbidden unless the WatchList feature gate is enabled")
    server = Server(refused, ConnectionResetError(), [event("ADDED", "b", 6)], listed=("a",))
    async with mirrored(server, cached=("gone",)) as reflector:
        assert content(reflector) == {"a": "5", "b": "6"}
        assert reflector.synced.is_set()
        assert [query.get("resourceVersion") for query in server.queries] == [None, "5", "5"]
        assert server.pages == 1


async def test_unavailable_server_is_not_asked_for_pages() -> None:
    server = Server(
        ApiError(404, "NotFound", "no such kind"), ApiError(503, "Unavailable", ""), [bookmark(4, end=True)]
    )
    async with mirrored(server) as reflector:
        assert reflector.synced.is_set()
        assert server.pages == 0
