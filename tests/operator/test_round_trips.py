"""How many requests a reconciliation makes, and how many of them wait for one another."""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Awaitable
from datetime import timedelta
from typing import Any, cast

import pytest
from pydantic_core import from_json
from simulation import RUNTIME, SETTINGS, START
from test_pods import pod

from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import cache_job, read_job
from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import SERVICE_ACCOUNTS, Json, Key, Resource
from dreambooth_operator.resources import JOBS, RAY_JOBS

KEY = Key("team", "dog")
JOB: Json = {
    "apiVersion": JOBS.api_version,
    "kind": JOBS.kind,
    "metadata": {
        "name": "dog", "namespace": "team", "uid": "u1", "generation": 1, "resourceVersion": "1",
        "creationTimestamp": "2026-11-24T06:00:00Z",
    },
    "spec": {"subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"}, "output": {"uri": "s3://b/out"}},
}  # fmt: skip


class Server:
    """An API server in memory. Requests are answered in rounds: all that wait at the same time are one round."""

    def __init__(self) -> None:
        self.objects: dict[tuple[Resource, Key], Json] = {(JOBS, KEY): copy.deepcopy(JOB)}
        self.rounds: list[list[str]] = []
        self._waiting: list[tuple[str, asyncio.Future[None]]] = []

    async def run(self, work: Awaitable[object]) -> None:
        """Answer the requests of `work` until it ends and no request waits."""
        task = asyncio.ensure_future(work)
        while not task.done() or self._waiting:
            for _ in range(20):
                await asyncio.sleep(0)
            waiting, self._waiting = self._waiting, []
            if waiting:
                self.rounds.append(sorted(name for name, _ in waiting))
            for _, future in waiting:
                future.set_result(None)
        await task

    @property
    def requests(self) -> list[str]:
        return [name for names in self.rounds for name in names]

    async def _arrive(self, verb: str, resource: Resource) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((f"{verb} {resource.kind}", future))
        await future

    async def get(self, resource: Resource, key: Key) -> Json:
        await self._arrive("get", resource)
        if (resource, key) not in self.objects:
            raise ApiError(404, "NotFound", str(key))
        return copy.deepcopy(self.objects[resource, key])

    async def create(self, resource: Resource, obj: Json) -> Json:
        await self._arrive("create", resource)
        key = Key(obj["metadata"]["namespace"], obj["metadata"]["name"])
        if (resource, key) in self.objects:
            raise ApiError(409, "AlreadyExists", str(key))
        self.objects[resource, key] = {**obj, "metadata": {**obj["metadata"], "uid": f"uid of {key.name}"}}
        return copy.deepcopy(self.objects[resource, key])

    async def apply(self, resource: Resource, obj: Json, *, manager: str, subresource: str) -> Json:
        del manager, subresource
        await self._arrive("apply", resource)
        job = self.objects[resource, KEY]
        if obj["metadata"]["resourceVersion"] != job["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "changed")
        job["status"] = obj["status"]
        self.change(job)
        return copy.deepcopy(job)

    async def delete(self, resource: Resource, key: Key, *, uid: str, foreground: bool) -> None:
        del uid, foreground
        await self._arrive("delete", resource)
        self.objects.pop((resource, key), None)

    @staticmethod
    def change(job: Json) -> None:
        job["metadata"]["resourceVersion"] = str(int(job["metadata"]["resourceVersion"]) + 1)


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def reconciler(server: Server) -> Reconciler:
    made = Reconciler(cast("Api", server), SETTINGS, now=lambda: START, progress_ca=str)
    made._runtimes._cluster.cache[Key("", "default")] = RUNTIME
    deliver(made, server)
    return made


def deliver(reconciler: Reconciler, server: Server) -> None:
    """The watch of jobs delivers the current job."""
    reconciler._jobs._store(KEY, copy.deepcopy(server.objects[JOBS, KEY]))


def name_of(reconciler: Reconciler) -> str:
    job = reconciler.cached_job(KEY)
    assert job
    return base_name(job)


async def test_new_job_has_its_ray_job_after_three_round_trips(server: Server, reconciler: Reconciler) -> None:
    await server.run(reconciler.reconcile(KEY))
    assert server.rounds == [
        ["apply DreamBoothJob"],
        ["create Event", "create NetworkPolicy", "create ServiceAccount"],
        ["create RayJob"],
        ["create ConfigMap"],
        ["apply DreamBoothJob"],
    ]
    status = server.objects[JOBS, KEY]["status"]
    assert status["rayJobUid"] == f"uid of {status['rayJobName']}"


async def test_job_of_a_stale_cache_causes_no_request(server: Server, reconciler: Reconciler) -> None:
    await server.run(reconciler.reconcile(KEY))
    done = len(server.requests)
    for _ in range(3):
        await server.run(reconciler.reconcile(KEY))
    assert server.requests[done:] == [], "the cache does not contain the operator's own write yet"
    deliver(reconciler, server)
    await server.run(reconciler.reconcile(KEY))
    assert server.requests[done:] == ["get RayJob"], "the RayJob is not cached yet"


async def test_interrupted_attempt_is_continued_after_checks_on_the_server(
    server: Server, reconciler: Reconciler
) -> None:
    """Only the process that has just opened an attempt knows that its RayJob does not exist and that it is current."""
    await server.run(reconciler.reconcile(KEY))
    for resource, key in [*server.objects]:
        if resource is RAY_JOBS:
            del server.objects[resource, key]
    job = server.objects[JOBS, KEY]
    del job["status"]["rayJobUid"]
    server.change(job)
    server.rounds.clear()
    deliver(reconciler, server)
    await server.run(reconciler.reconcile(KEY))
    assert server.rounds[:2] == [["get RayJob"], ["get DreamBoothJob"]]
    assert server.requests.count("create RayJob") == 1


async def test_ray_job_of_somebody_else_is_not_adopted(server: Server, reconciler: Reconciler) -> None:
    name = f"{name_of(reconciler)}-1"
    squatter: dict[str, Any] = {"kind": "RayJob", "metadata": {"name": name, "namespace": "team", "uid": "foreign"}}
    server.objects[RAY_JOBS, Key("team", name)] = squatter
    await server.run(reconciler.reconcile(KEY))
    status = server.objects[JOBS, KEY]["status"]
    assert (status["phase"], status["lastFailure"]["reason"]) == ("Retrying", "NameTaken")
    assert "rayJobUid" not in status
    reconciler._now = lambda: START + timedelta(hours=1)
    deliver(reconciler, server)
    await server.run(reconciler.reconcile(KEY))
    status = server.objects[JOBS, KEY]["status"]
    assert (status["phase"], status["attempts"]) == ("Starting", 2), "the next attempt has another name"


async def test_ray_job_is_not_created_if_another_child_is_taken(server: Server, reconciler: Reconciler) -> None:
    name = name_of(reconciler)
    foreign: Json = {"kind": "ServiceAccount", "metadata": {"name": name, "namespace": "team", "uid": "foreign"}}
    server.objects[SERVICE_ACCOUNTS, Key("team", name)] = foreign
    await server.run(reconciler.reconcile(KEY))
    assert "create RayJob" not in server.requests
    assert server.objects[JOBS, KEY]["status"]["lastFailure"]["reason"] == "NameTaken"


PROGRESS = {"attempt": 1, "phase": "Train", "time": "2026-11-24T06:01:00Z"}


@pytest.mark.parametrize(
    ("change", "reconciled"),
    [
        ({"training": {"step": 2}}, False),
        ({"classImages": {"wanted": 9, "generated": 2}}, False),
        ({"report": {**PROGRESS, "time": "2026-11-24T06:02:00Z"}}, False),
        ({"report": {**PROGRESS, "phase": "Evaluate"}}, True),
        ({"scores": {"dino": 0.7}}, True),
        ({"phase": "Failed"}, True),
    ],
)
async def test_only_reports_that_decisions_depend_on_are_reconciled(change: Json, reconciled: bool) -> None:
    reconciler = Reconciler(cast("Api", None), SETTINGS, now=lambda: START, progress_ca=str)

    def observe(version: str, status: Json) -> None:
        job = copy.deepcopy({**JOB, "status": status})
        job["metadata"]["resourceVersion"] = version
        reconciler._jobs._store(KEY, job)

    status = {"phase": "Running", "training": {"step": 1}, "report": PROGRESS}
    observe("1", status)
    reconciler.queue.done(await reconciler.queue.get())
    observe("2", {**status, **change})
    assert len(reconciler.queue) == int(reconciled)
    cached = reconciler.cached_job(KEY)
    assert cached
    assert cached.resource_version == "2", "the cache has the latest version in any case"


async def test_change_of_a_runtime_reconciles_the_jobs_that_have_not_finished() -> None:
    reconciler = Reconciler(cast("Api", None), SETTINGS, now=lambda: START, progress_ca=str)
    phases = ("Running", "Succeeded", "Failed", "Retrying", None)
    for phase in phases:
        metadata = {**JOB["metadata"], "name": str(phase).lower()}
        status = {"phase": phase, "message": '"phase":"Failed"'} if phase else {}
        reconciler._jobs._store(Key("team", metadata["name"]), {**JOB, "metadata": metadata, "status": status})
    for _ in phases:
        reconciler.queue.done(await reconciler.queue.get())
    reconciler._runtimes._changed(Key("", "default"))
    found = {await reconciler.queue.get() for _ in range(len(reconciler.queue))}
    assert found == {Key("", "default"), Key("team", "running"), Key("team", "retrying"), Key("team", "none")}


def test_cached_job_takes_less_memory_than_its_text() -> None:
    cached = cache_job(copy.deepcopy({**JOB, "status": {"conditions": [PROGRESS] * 5}}))
    assert read_job(from_json(cached.raw)) == read_job(JOB | {"status": {"conditions": [PROGRESS] * 5}})
    assert len(cached.compressed) < len(cached.raw) / 2


async def test_events_that_cannot_be_read_do_not_stop_the_reconciliation(
    server: Server, reconciler: Reconciler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They only explain why a pod waits."""
    await server.run(reconciler.reconcile(KEY))
    deliver(reconciler, server)
    job = reconciler.cached_job(KEY)
    assert job
    head = pod({"phase": "Pending"})
    reconciler._pods.cache[Key("team", head.name)] = head
    monkeypatch.setattr(reconciler._pods_of, "of", lambda _: [Key("team", head.name)])

    async def request(*_: object, **__: object) -> Json:
        raise ApiError(429, "TooManyRequests", "later")

    monkeypatch.setattr(server, "request", request, raising=False)
    assert await reconciler._observe_pods(job) == (head,)


def test_lost_reports_of_a_deleted_job_are_forgotten(server: Server, reconciler: Reconciler) -> None:
    """A standby serves reports as well, and does not reconcile."""
    del server
    reconciler.status_not_written(KEY)
    reconciler._job_changed(KEY)
    assert KEY in reconciler._not_written
    del reconciler._jobs.cache[KEY]
    reconciler._job_changed(KEY)
    assert not reconciler._not_written
