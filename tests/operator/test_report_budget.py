"""The write budget of progress reports: its interval, a fleet of trainers, and the status server that applies it."""

from __future__ import annotations

import asyncio
import heapq
import json
import random
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import aiohttp
import pytest
from test_auth import Clock, Reviews, checker, token
from test_round_trips import JOB

from dreambooth_api.progress import MAX_REPORT_SECONDS
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import Job, read_job
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key, Resource
from dreambooth_operator.machinery.serving import serving
from dreambooth_operator.machinery.ttlcache import TtlCache
from dreambooth_operator.statusserver import budget, server
from dreambooth_operator.statusserver.budget import is_due, report_interval_seconds
from dreambooth_operator.statusserver.server import StatusServer

DEADLINE = RunPolicy().progress_deadline_seconds
NOW = datetime(2026, 11, 24, 7, 0, tzinfo=UTC)
SECOND = timedelta(seconds=1)
MINUTE = timedelta(seconds=61)


@pytest.mark.parametrize(
    ("jobs", "deadline_seconds", "interval_seconds"),
    [
        (0, DEADLINE, 10),
        (500, DEADLINE, 10),
        (1000, DEADLINE, 20),
        (10_000, DEADLINE, 200),
        (10_000, 300, 100),
        (1_000_000, DEADLINE, MAX_REPORT_SECONDS),
        (1_000_000, 86_400, MAX_REPORT_SECONDS),
    ],
)
def test_interval_grows_with_the_jobs_within_the_progress_deadline(
    jobs: int, deadline_seconds: float, interval_seconds: float
) -> None:
    assert report_interval_seconds(jobs, deadline_seconds) == interval_seconds


@pytest.mark.parametrize(
    ("ago_seconds", "due"), [(None, True), (0, False), (79, False), (80, True), (1e6, True), (-5, True)]
)
def test_progress_is_due_when_most_of_the_interval_has_passed(ago_seconds: float | None, due: bool) -> None:
    written = None if ago_seconds is None else NOW - timedelta(seconds=ago_seconds)
    assert is_due(written, NOW, 100) == due


def test_ten_thousand_trainers_stay_within_the_budget() -> None:
    """Reports go to one of two replicas at random. Some trainers ignore the interval and report every two seconds."""
    jobs, older, end_seconds = 10_000, 50, 1500.0
    rng = random.Random(15)
    now = 0.0
    counts: list[TtlCache[int, bool]] = [
        TtlCache(ttl_seconds=budget.COUNTED_SECONDS, max_entries=100_000, clock=lambda: now) for _ in range(2)
    ]
    written: dict[int, datetime] = {}
    writes: list[float] = []
    waiting = [(rng.uniform(0, 60), job) for job in range(jobs)]
    heapq.heapify(waiting)
    while waiting[0][0] < end_seconds:
        now, job = heapq.heappop(waiting)
        count = rng.choice(counts)
        count.set(job, True)
        interval = report_interval_seconds(len(count), DEADLINE)
        if is_due(written.get(job), NOW + timedelta(seconds=now), interval):
            written[job] = (NOW + timedelta(seconds=now)).replace(microsecond=0)
            writes.append(now)
        heapq.heappush(waiting, (now + (2 if job < older else interval), job))
    last = [write for write in writes if write >= end_seconds / 2]
    assert 0.9 <= len(last) / (end_seconds / 2) / budget.WRITES_PER_SECOND <= 1.1
    oldest = min(written.values()) - NOW
    assert oldest.total_seconds() > end_seconds - DEADLINE / 2, "no job is near its progress deadline"


class ApiServer(Reviews):
    """An API server with one job, which counts its requests by method."""

    def __init__(self) -> None:
        super().__init__(authenticated=True)
        self.job: Json = json.loads(json.dumps({**JOB, "status": {"phase": "Running", "attempts": 1}}))
        self.status["user"] = {"username": f"system:serviceaccount:team:{base_name(read_job(self.job))}"}
        self.gets = self.applies = 0
        self.gone = False

    async def get(self, resource: Resource, key: Key) -> Json:
        self.gets += 1
        if self.gone:
            raise ApiError(404, "NotFound", "no such job")
        return self.job

    async def apply(self, resource: Resource, obj: Json, **_: object) -> Json:
        self.applies += 1
        if obj["metadata"]["resourceVersion"] != self.job["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "changed")
        version = str(int(self.job["metadata"]["resourceVersion"]) + 1)
        status = {**self.job["status"], **obj["status"]}
        self.job = {**self.job, "metadata": {**self.job["metadata"], "resourceVersion": version}, "status": status}
        return self.job


class Reporter:
    """A trainer of job team/dog that reports to a status server at a controlled time."""

    def __init__(self, session: aiohttp.ClientSession, api: ApiServer) -> None:
        self.session, self.api, self.url = session, api, ""
        self.server = StatusServer(cast("Api", api), checker(api, Clock()), cached=self._job, now=lambda: self.now)
        self.now = NOW
        self.gone = False  # the cache contains no job
        self.cached: Json | None = None  # what the cache contains, if not the latest

    def _job(self, _: Key) -> Job | None:
        return None if self.gone else read_job(self.cached or self.api.job)

    async def report(self, attempt: int = 1, **fields: object) -> tuple[int, Mapping[str, Any], int, int]:
        """Status code, reply, and the GETs and PATCHes that the report caused."""
        gets, applies = self.api.gets, self.api.applies
        headers = {"Authorization": f"Bearer {token(sub=self.api.status['user']['username'])}"}
        async with self.session.post(f"{self.url}/{attempt}", json=fields, headers=headers) as answer:
            return answer.status, await answer.json(), self.api.gets - gets, self.api.applies - applies


@pytest.fixture
async def reporter() -> AsyncIterator[Reporter]:
    async with aiohttp.ClientSession() as session:
        reporter = Reporter(session, ApiServer())
        async with serving(reporter.server.app(), "127.0.0.1", 0) as port:
            reporter.url = f"http://127.0.0.1:{port}/v1/jobs/team/dog/attempts"
            yield reporter


async def test_reply_contains_the_interval(reporter: Reporter) -> None:
    answer = await reporter.report(phase="Train", step=1)
    assert answer == (202, {"message": "written", "nextReportSeconds": 10}, 0, 1)
    for number in range(2000):
        reporter.server._reporting.set(Key("team", str(number)), True)
    _, reply, *_ = await reporter.report(step=2)
    assert reply == {
        "message": "accepted; not written, because the last write was too recent", "nextReportSeconds": 41,
    }  # fmt: skip


async def test_trainer_that_ignores_the_interval_writes_no_more_often(reporter: Reporter) -> None:
    await reporter.report(phase="Train", step=1, steps=1000)
    requests = 0
    for second in range(1, 61):
        reporter.now = NOW + timedelta(seconds=second)
        status, _, gets, applies = await reporter.report(step=1 + second)
        assert (status, gets) == (202, 0)
        requests += applies
    assert 6 <= requests <= 7, "every 8 to 10 seconds"
    assert reporter.api.job["status"]["training"]["step"] > 50


async def test_important_reports_are_written_at_once(reporter: Reporter) -> None:
    await reporter.report(phase="Train", step=1, steps=1000)
    reporter.now += SECOND
    for fields in (
        {"step": 2, "savedStep": 2},
        {"phase": "Evaluate"},
        {"scores": {"dino": 0.7}},
        {"output": {"uri": "s3://b/x"}},
        {"failure": {"reason": "Boom"}},
    ):
        assert (await reporter.report(**fields))[1:] == ({"message": "written", "nextReportSeconds": 10}, 0, 1)
        assert (await reporter.report(**fields))[2:] == (0, 0)
        reporter.now += SECOND


async def test_important_reports_of_a_job_are_written_once_per_second(reporter: Reporter) -> None:
    written = 0
    for number in range(60):
        reporter.now = NOW + number * SECOND / 20
        for fields in ({"phase": "Train"}, {"phase": "Evaluate"}, {"savedStep": 1 + number}):
            status, _, gets, applies = await reporter.report(**fields)
            assert (status, gets, applies) in ((202, 0, 1), (202, 0, 0), (503, 0, 0))
            written += applies
    assert written == 3


async def test_last_message_is_written_at_once(reporter: Reporter) -> None:
    await reporter.report(phase="Publish")
    for fields in ({"output": {"uri": "s3://b/x"}}, {"failure": {"reason": "Boom"}}):
        assert (await reporter.report(**fields))[::3] == (202, 1)
    for fields in ({"output": {"uri": "s3://b/y"}}, {"failure": {"reason": "Other"}}):
        assert (await reporter.report(**fields))[::3] == (503, 0)


async def test_stale_cache_causes_no_wrong_answer(reporter: Reporter) -> None:
    """It costs a GET: before a rejection, and after a conflict."""
    await reporter.report(phase="Train", step=1, steps=1000)
    stale = reporter.cached = reporter.api.job
    reporter.now += SECOND
    first, second = 1, 2

    def change(**fields: Json) -> None:
        metadata = {**reporter.api.job["metadata"], "resourceVersion": "1000"}
        reporter.api.job = {**stale, "metadata": metadata, **fields}

    change(status={**stale["status"], "attempts": second})
    assert (await reporter.report(attempt=second, phase="Prepare"))[::2] == (202, 1), "the cache has attempt 1"
    change(status={**stale["status"], "attempts": second})
    status, reply, gets, applies = await reporter.report(attempt=first, phase="Evaluate")
    assert (status, gets, applies) == (409, 1, 1)
    assert reply["message"] == "attempt 1 has ended, the latest attempt is 2; stop"
    reporter.now += MINUTE  # rejections are remembered for a minute
    change(metadata={**stale["metadata"], "resourceVersion": "1000", "deletionTimestamp": "2026-11-24T07:00:00Z"})
    assert (await reporter.report(phase="Evaluate"))[::2] == (409, 1)
    reporter.now += MINUTE
    change(metadata={**stale["metadata"], "resourceVersion": "1000", "uid": "u2"})
    assert (await reporter.report(phase="Evaluate"))[::2] == (403, 1), "another job of the same name"
    assert reporter.api.job["status"] == stale["status"]


async def test_rejection_costs_one_get_per_minute(reporter: Reporter) -> None:
    ended = {**reporter.api.job["status"], "attempts": 2}
    reporter.api.job = {**reporter.api.job, "status": ended}
    assert [(await reporter.report(phase="Evaluate"))[::2] for _ in range(3)] == [(409, 1), (409, 0), (409, 0)]
    assert (await reporter.report(attempt=2, phase="Prepare"))[::2] == (202, 0), "another attempt of the same account"
    reporter.now += MINUTE
    assert (await reporter.report(phase="Evaluate"))[::2] == (409, 1)


async def test_report_for_a_missing_job_costs_one_get_per_minute(reporter: Reporter) -> None:
    reporter.api.gone = reporter.gone = True
    for expected in ((404, 1), (404, 0), (404, 0)):
        assert (await reporter.report(phase="Train"))[::2] == expected
    reporter.now += MINUTE
    assert (await reporter.report(phase="Train"))[::2] == (404, 1)


async def test_attempt_that_may_still_start_is_not_rejected_for_a_minute(reporter: Reporter) -> None:
    assert (await reporter.report(attempt=2, phase="Prepare"))[::2] == (409, 1)
    reporter.api.job = {**reporter.api.job, "status": {**reporter.api.job["status"], "attempts": 2}}
    assert (await reporter.report(attempt=2, phase="Prepare"))[::2] == (202, 0)


@pytest.mark.parametrize(
    "account", ["default", "00000000", "dbj-dog", "dbj-cat-00000000", "dbj-dog-x-00000000", "dbj-dog-0000000g"]
)
async def test_account_of_no_job_of_that_name_costs_no_get(reporter: Reporter, account: str) -> None:
    reporter.api.status["user"] = {"username": f"system:serviceaccount:team:{account}"}
    assert (await reporter.report(phase="Train"))[::2] == (403, 0)


async def test_pod_of_another_attempt_costs_no_get(reporter: Reporter) -> None:
    user = reporter.api.status["user"]
    account = user["username"].rpartition(":")[2]
    for attempt, status in ((1, 202), (2, 403), (12, 403)):
        user["extra"] = {"authentication.kubernetes.io/pod-name": [f"{account}-1-abcde-head-fghij"]}
        assert (await reporter.report(attempt=attempt, phase="Train"))[::2] == (status, 0)


@pytest.mark.parametrize(
    ("error", "is_lost"),
    [
        (ApiError(500, "InternalError", "etcdserver: request timed out"), True),
        (ApiError(429, "TooManyRequests", "retry"), True),
        (ConnectionError(), True),
        (None, True),
        (ApiError(422, "Invalid", "no"), False),
        (ApiError(404, "NotFound", "gone"), False),
    ],
    ids=str,
)
async def test_report_that_the_api_server_did_not_store_is_lost(
    reporter: Reporter, monkeypatch: pytest.MonkeyPatch, error: Exception | None, is_lost: bool
) -> None:
    async def apply(*_: object, **__: object) -> Json:
        if error is None:
            await asyncio.Event().wait()  # no answer
        raise error or AssertionError

    lost: list[Key] = []
    reporter.server.on_lost = lost.append
    monkeypatch.setattr(reporter.api, "apply", apply)
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 0.2)
    assert ((await reporter.report(phase="Train"))[0] == 503) == is_lost
    assert lost == [Key("team", "dog")] * is_lost
