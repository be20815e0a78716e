"""Limits of the status server: impossible tokens cause no TokenReview, refusals are cached, slow requests end."""

from __future__ import annotations

import asyncio
import base64
import json
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from dreambooth_operator.controller.settings import AUDIENCE
from dreambooth_operator.machinery import connections
from dreambooth_operator.machinery import serving as machinery_serving
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.connections import ConnectionLimits
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.machinery.serving import health_app, serving
from dreambooth_operator.statusserver import auth, server
from dreambooth_operator.statusserver.auth import Caller, TokenChecker
from dreambooth_operator.statusserver.server import StatusServer

NOW = 1_800_000_000.0
SUBJECT = "system:serviceaccount:team:dog"


def encode(value: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def token(signature: str = "c2ln", **claims: object) -> str:
    payload = {"aud": [AUDIENCE], "exp": int(NOW) + 600, "sub": SUBJECT, **claims}
    return f"{encode({'alg': 'RS256'})}.{encode(payload)}.{signature}"


class Reviews:
    """An API server that counts its token reviews."""

    def __init__(self, *, authenticated: bool) -> None:
        self.count = 0
        user = {"username": SUBJECT}
        self.status: Json = {"authenticated": authenticated, "audiences": [AUDIENCE], "user": user}

    async def request(self, *_: object, **__: object) -> Json:
        self.count += 1
        return {"status": self.status}


class Clock:
    now = NOW

    def __call__(self) -> float:
        return self.now


def checker(reviews: Reviews, clock: Clock) -> TokenChecker:
    api: Any = reviews
    return TokenChecker(cast("Api", api), AUDIENCE, clock=clock)


IMPOSSIBLE = {
    "no JWT": "abc",
    "two parts": "a.b",
    "a payload that is not base64": "a.b.c",
    "a payload that is not an object": f"a.{encode([1])}.c",
    "another audience": token(aud=["https://kubernetes.default.svc"]),
    "a similar audience": token(aud=f"x{AUDIENCE}x"),
    "an expired token": token(exp=int(NOW) - 61),
    "an expiry of another type": token(exp="never"),
    "no service account": token(sub="admin"),
    "a line break": token() + "\n",
    "a large token": token("A" * 20_000),
    "a deeply nested payload": f"a.{base64.urlsafe_b64encode(b'[' * 9000).decode()}.c",
}


@pytest.mark.parametrize("case", IMPOSSIBLE)
async def test_impossible_tokens_are_not_reviewed(case: str) -> None:
    reviews = Reviews(authenticated=True)
    assert await checker(reviews, Clock()).check(IMPOSSIBLE[case]) is None
    assert reviews.count == 0


async def test_valid_token_is_reviewed_once_a_minute() -> None:
    reviews, clock = Reviews(authenticated=True), Clock()
    tokens = checker(reviews, clock)
    for _ in range(3):
        assert await tokens.check(token()) == Caller("team", "dog", "")
    assert reviews.count == 1
    clock.now += 61
    await tokens.check(token())
    assert reviews.count == 2


async def test_refusals_are_cached() -> None:
    reviews = Reviews(authenticated=False)
    tokens = checker(reviews, Clock())
    for _ in range(3):
        assert await tokens.check(token()) is None
    assert reviews.count == 1


async def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(auth, "_MAX_REFUSALS", 10)
    tokens = checker(Reviews(authenticated=False), Clock())
    for number in range(50):
        await tokens.check(token(str(number)))
    assert len(tokens._refused) == 10


async def test_tokens_of_ten_thousand_jobs_are_reviewed_once_whatever_else_arrives() -> None:
    reviews = Reviews(authenticated=True)
    tokens = checker(reviews, Clock())
    valid = [token(f"valid{number}") for number in range(10_000)]
    for each in valid:
        assert await tokens.check(each)
    assert reviews.count == 10_000
    reviews.status["authenticated"] = False
    for number in range(2 * auth._MAX_REFUSALS):
        assert await tokens.check(token(f"invalid{number}")) is None
    reviewed = reviews.count
    for each in valid:
        assert await tokens.check(each)
    assert reviews.count == reviewed


async def start_report(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Send the headers of a report, but no body."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    head = f"POST /v1/jobs/team/dog/attempts/1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token()}\r\n"
    writer.write(f"{head}Content-Length: 9\r\n\r\n".encode())
    await writer.drain()
    return reader, writer


async def finish(writer: asyncio.StreamWriter) -> None:
    writer.write(b"no object")
    await writer.drain()


async def test_slow_and_excess_reports_are_answered_with_503(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "_MAX_IN_FLIGHT", 1)
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 2)
    reviews: Any = WaitingReviews()
    statuses = StatusServer(reviews, checker(reviews, Clock()), cached=lambda _: None, now=lambda: datetime.now(UTC))
    async with serving(statuses.app(), "127.0.0.1", 0) as port, asyncio.timeout(20):
        slow, slow_writer = await start_report(port)
        first, first_writer = await start_report(port)
        await finish(first_writer)
        while not statuses._in_flight:
            await asyncio.sleep(0.01)
        excess, excess_writer = await start_report(port)
        await finish(excess_writer)
        assert b"too many reports at once; retry" in await excess.read(4096)
        reviews.answer.set()
        assert b" 400 " in await first.readline(), "it was processed, although another one sends no body"
        assert not statuses._in_flight
        assert b" 503 " in await slow.readline()
        for writer in (slow_writer, first_writer, excess_writer):
            writer.close()


class WaitingReviews(Reviews):
    """Answers nothing until `answer` is set."""

    def __init__(self) -> None:
        super().__init__(authenticated=True)
        self.answer = asyncio.Event()

    async def request(self, *_: object, **__: object) -> Json:
        await self.answer.wait()
        return await super().request()


async def test_one_address_has_a_part_of_the_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "_MIN_OF_ADDRESS", 2)
    limits = ConnectionLimits(max_open=9, first_request_seconds=60)
    health = health_app(Metrics("limits"), lambda: True)
    async with serving(health, "127.0.0.1", 0, limits=limits) as port, asyncio.timeout(20):
        taken = [await asyncio.open_connection("127.0.0.1", port, local_addr=("127.0.0.2", 0)) for _ in range(3)]
        assert await closed(taken[2][0]), "the third one"
        other, other_writer = await asyncio.open_connection("127.0.0.1", port)
        other_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await other.readline()
        for writer in (*(writer for _, writer in taken), other_writer):
            writer.close()


async def test_idle_connections_are_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machinery_serving, "_KEEPALIVE_SECONDS", 0.2)
    async with serving(health_app(Metrics("idle"), lambda: True), "127.0.0.1", 0) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        async with asyncio.timeout(20):
            assert b" 200 " in await reader.read(), "until the server closes it"
        writer.close()


async def closed(reader: asyncio.StreamReader) -> bool:
    """Wait until the server closes a connection."""
    async with asyncio.timeout(20):
        try:
            return await reader.read() == b""
        except ConnectionResetError:
            return True


async def test_connections_without_a_request_are_closed() -> None:
    limits = ConnectionLimits(max_open=3, first_request_seconds=0.5)
    health = health_app(Metrics("limits"), lambda: True)
    async with serving(health, "127.0.0.1", 0, limits=limits) as port:
        used, used_writer = await asyncio.open_connection("127.0.0.1", port)
        used_writer.write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b" 200 " in await used.readline()
        silent, silent_writer = await asyncio.open_connection("127.0.0.1", port)
        slow, slow_writer = await asyncio.open_connection("127.0.0.1", port)
        slow_writer.write(b"GET /healthz HTTP/1.1\r\nHost:")  # headers that do not end
        excess, excess_writer = await asyncio.open_connection("127.0.0.1", port)
        assert await closed(excess), "one connection too many"
        assert await closed(silent)
        assert await closed(slow)
        used_writer.write(b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n")
        await used.readuntil(b"ok")
        assert b" 200 " in await used.readline(), "a connection that is used stays open"
        for writer in (used_writer, silent_writer, slow_writer, excess_writer):
            writer.close()
