"""Since when the progress deadline counts: only while reports could be written."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import pytest
from simulation import SETTINGS, job_with, make_job

from dreambooth_operator import app
from dreambooth_operator.controller.reconciler import Reconciler, _Known
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.metrics.state import RuntimeLabels
from dreambooth_operator.resources import JOBS

START = datetime(2026, 11, 28, tzinfo=UTC)


class Answers:
    """An API server that fails, or delivers, as the list says, and then answers no more."""

    def __init__(self, *answers: Exception | list[Json]) -> None:
        self.answers = list(answers)
        self.done = asyncio.Event()

    async def request(self, *_: object, **__: object) -> Json:
        return {"items": [], "metadata": {"resourceVersion": "1"}}

    async def lines(self, *_: object) -> AsyncIterator[bytes]:
        if not self.answers:
            self.done.set()
            await asyncio.Event().wait()
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        for event in answer:
            yield json.dumps(event).encode()
        raise ConnectionResetError


async def reflected(*answers: Exception | list[Json]) -> Reflector[Json]:
    """A reflector after these answers to its watches."""
    server = Answers(*answers)
    reflector = Reflector(cast("Api", server), JOBS, project=lambda obj: obj, on_change=lambda _: None)
    task = asyncio.create_task(reflector.run())
    async with asyncio.timeout(30):
        await server.done.wait()
    task.cancel()
    return reflector


async def test_reflector_records_when_the_server_was_unavailable() -> None:
    before = datetime.now(UTC)
    reflector = await reflected(ApiError(503, "ServiceUnavailable", "no"))
    assert reflector.unavailable
    assert before <= reflector.unavailable <= datetime.now(UTC)


async def test_interrupted_watch_is_no_outage() -> None:
    """A load balancer may limit the time of a connection. It must not disable the progress deadline."""
    annotations = {"k8s.io/initial-events-end": "true"}
    bookmark = {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": "2", "annotations": annotations}}}
    assert (await reflected([bookmark])).unavailable is None


@pytest.mark.parametrize(("ago_seconds", "expected_seconds"), [(None, 0), (-5, 0), (5, 5)])
async def test_outage_of_the_api_server_counts(ago_seconds: float | None, expected_seconds: float) -> None:
    reconciler = Reconciler(cast("Api", None), SETTINGS, now=lambda: START, progress_ca=str)
    if ago_seconds is not None:
        reconciler._jobs.unavailable = START + timedelta(seconds=ago_seconds)
    observed = await reconciler._observe(make_job(), _Known())
    assert observed.reports_since == START + timedelta(seconds=expected_seconds)


class Refusing:
    """An API server that answers reads, and writes of a status with an error."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    async def apply(self, *_: object, **__: object) -> Json:
        raise self.error


@pytest.mark.parametrize(
    ("error", "counts"),
    [
        (ApiError(500, "InternalError", "etcdserver: request timed out"), True),
        (ApiError(429, "TooManyRequests", "retry"), True),
        (TimeoutError(), True),
        (ApiError(409, "Conflict", "changed"), False),
        (ApiError(422, "Invalid", "no"), False),
    ],
    ids=str,
)
async def test_status_that_could_not_be_written_counts(error: Exception, counts: bool) -> None:
    """The deadline passes while no report can be written; nor can the failure. Later it must not be written either."""
    now = START
    reconciler = Reconciler(cast("Api", Refusing(error)), SETTINGS, now=lambda: now, progress_ca=str)
    job = make_job()
    now = later = START + timedelta(hours=1)
    with pytest.raises(type(error)):
        await reconciler._write_status(job, job.status)
    now += timedelta(seconds=9)
    assert (await reconciler._observe(job, _Known())).reports_since == (later if counts else START)
    other = job_with({}, name="cat")
    assert (await reconciler._observe(other, _Known())).reports_since == START, "it may be the job's own fault"
    await reconciler.reconcile(job.key)
    assert (await reconciler._observe(job, _Known())).reports_since == START, "the job is gone"


async def test_time_before_a_process_leads_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage of writes ends the lease. The next leader has received no reports that it could have written."""

    async def run_workers(*_: object, **__: object) -> None: ...

    reconciler = Reconciler(cast("Api", None), SETTINGS, now=lambda: START, progress_ca=str)
    reconciler.reflectors = ()
    monkeypatch.setattr(app, "run_workers", run_workers)
    monkeypatch.setattr(app, "_now", lambda: START + timedelta(hours=1))
    await app._work(cast("Api", None), reconciler, Metrics("test"), RuntimeLabels(lambda _: None), app.Options())
    assert reconciler.reports_since == START + timedelta(hours=1)


class LateTls:
    """Certificates that the API server delivers after an hour."""

    context = None
    now = START

    def __init__(self, *_: object, **__: object) -> None:
        LateTls.now = START

    def trusted(self) -> str:
        return ""

    async def start(self) -> None:
        LateTls.now = START + timedelta(hours=1)

    async def run(self) -> None: ...


async def test_time_before_the_progress_server_opens_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    @asynccontextmanager
    async def connected() -> AsyncIterator[None]:
        yield

    async def connect(_: str | None) -> Any:
        return connected()

    @asynccontextmanager
    async def serving(*_: object, **__: object) -> AsyncIterator[int]:
        yield 0

    started: list[datetime] = []

    async def run_with(reconciler: Reconciler, *work: Coroutine[None, None, None]) -> None:
        started.append(reconciler.reports_since)
        for each in work:
            each.close()

    monkeypatch.setattr(app.Api, "connect", connect)
    monkeypatch.setattr(app, "ServerTls", LateTls)
    monkeypatch.setattr(app, "serving", serving)
    monkeypatch.setattr(app, "_now", lambda: LateTls.now)
    monkeypatch.setattr(app, "_run_with_reflectors", run_with)
    await app.run(app.Options())
    assert started == [START + timedelta(hours=1)]
