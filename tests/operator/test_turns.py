"""Latency of the event loop: ten thousand cached jobs do not delay the lease, the probes or a report."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import time
from collections.abc import AsyncIterator, Callable, Iterator
from datetime import timedelta
from typing import Any, cast

import pytest
from simulation import RUNTIME, SETTINGS, START, World, make_job

from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.metrics import Metrics
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, Key
from dreambooth_operator.machinery.workers import run_workers

JOBS = 10_000
WORKERS = 8
MAX_LAG_SECONDS = 0.05


async def max_increase(measure: Callable[[], float], is_done: Callable[[], bool]) -> float:
    """The maximum increase of `measure` between two iterations of the event loop, until `is_done`."""
    largest, last = 0.0, measure()
    while not is_done():
        await asyncio.sleep(0)
        now = measure()
        largest, last = max(largest, now - last), now
    return largest


async def test_workers_yield_to_other_tasks() -> None:
    queue: WorkQueue[Key] = WorkQueue()
    done: list[Key] = []

    async def reconcile(key: Key) -> None:
        done.append(key)

    for number in range(JOBS):
        queue.add(Key("n", str(number)))
    workers = asyncio.create_task(run_workers(queue, reconcile, Metrics("test"), count=WORKERS))
    assert await max_increase(lambda: len(done), lambda: len(done) == JOBS) <= WORKERS
    workers.cancel()


def object_of(number: int) -> Json:
    return {"metadata": {"namespace": "n", "name": str(number), "resourceVersion": "1"}}


class Instant:
    """An API server whose responses are available at once, so that no await suspends. It has 1000 objects.

    If it streams no lists, it has pages of them.
    """

    def __init__(self, *, streams: bool) -> None:
        self.streams = streams

    async def request(self, method: str, path: str, *, query: dict[str, str], partial: object) -> Json:
        del method, path, partial
        return {"items": [object_of(n) for n in range(int(query["limit"]))], "metadata": {"resourceVersion": "1"}}

    async def lines(self, path: str, query: dict[str, str]) -> AsyncIterator[bytes]:
        del path
        if "sendInitialEvents" in query and not self.streams:
            raise ApiError(422, "Invalid", "sendInitialEvents is forbidden")
        for data in ("old", "new") if self.streams else ("new",):
            for number in range(1000):
                yield json.dumps({"type": "ADDED", "object": object_of(number) | {"data": data}}).encode()
        await asyncio.sleep(3600)


@pytest.mark.parametrize("streams", [True, False])
async def test_reflector_yields_to_other_tasks(streams: bool) -> None:
    seen: list[Key] = []
    api = cast("Api", Instant(streams=streams))
    mirror = Reflector(api, CONFIG_MAPS, project=lambda obj: obj, on_change=seen.append, page=1000)
    task = asyncio.create_task(mirror.run())
    async with asyncio.timeout(60):
        assert await max_increase(lambda: len(seen), lambda: len(seen) == 2000) <= 1
    task.cancel()


def running_jobs(count: int) -> Reconciler:
    """A reconciler whose caches contain this many running jobs, none of which needs an action."""
    world = World(make_job())
    world.reconcile()
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")
    world.reconcile()
    world.reconcile()
    assert not [a for a in world.observe().decide().actions if isinstance(a, WriteStatus)]
    assert world.job
    assert world.job.spec
    status = world.status.model_dump(mode="json", by_alias=True, exclude_none=True)
    spec = world.job.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    reconciler = Reconciler(cast("Api", None), SETTINGS, now=lambda: START + timedelta(seconds=60), progress_ca=str)
    reconciler._runtimes._cluster.cache[Key("", "default")] = RUNTIME
    for number in range(count):
        name = f"dog-{number}"
        metadata = {
            "name": name, "namespace": "team", "uid": "u1", "generation": 1, "resourceVersion": "1",
            "creationTimestamp": "2026-11-24T06:00:00Z", "labels": {"dreambooth.dev/job": name},
        }  # fmt: skip
        job: dict[str, Any] = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": metadata}
        reconciler._jobs._store(
            Key("team", name), {**job, "spec": spec, "status": {**status, "rayJobName": name, "rayCluster": name}}
        )
        for mirror, made in (
            (reconciler._ray_jobs, world.ray_jobs[world.ray_job]),
            (reconciler._clusters, world.clusters[world.ray_job]),
        ):
            child = Key("team", name)
            cast("dict[Key, object]", mirror.cache)[child] = made.__class__(
                **{slot: getattr(made, slot) for slot in made.__slots__}
                | {"name": name, "owner": name}
                | ({"ray_job": name} if mirror is reconciler._clusters else {})
            )
            mirror._on_change(child)
    return reconciler


@pytest.fixture
def frozen_heap() -> Iterator[None]:
    """Exclude objects of earlier tests from garbage collection during the measurement."""
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


async def test_ten_thousand_jobs_delay_other_tasks_by_less_than_the_limit(frozen_heap: None) -> None:
    reconciler, metrics = running_jobs(JOBS), Metrics("test")
    gc.freeze()
    done = metrics.registry.get_sample_value

    def count() -> float:
        return done("test_reconciles_total", {"result": "ok"}) or 0

    workers = asyncio.create_task(run_workers(reconciler.queue, reconciler.reconcile, metrics, count=WORKERS))
    # CPU time of the thread, so that other processes on the machine do not count.
    lag_seconds = await max_increase(time.thread_time, lambda: count() >= JOBS or workers.done())
    workers.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await workers
    assert count() == JOBS
    for result in ("conflict", "rejected", "unreachable", "error"):
        assert done("test_reconciles_total", {"result": result}) is None, "no key waits for a retry"
    print(f"worst lag {lag_seconds * 1000:.1f} ms")
    assert lag_seconds < MAX_LAG_SECONDS
