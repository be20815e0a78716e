"""Requests that reports cause, on a real API server: one PATCH for a written report, and none for another."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml
from devcluster import ControlPlane
from simulation import SETTINGS
from test_crd import MINIMAL
from test_paths import started_job

from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import read_job
from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.controller.settings import AUDIENCE
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.connection import find_connection
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.machinery.serving import serving
from dreambooth_operator.statusserver.auth import TokenChecker
from dreambooth_operator.statusserver.server import StatusServer


class CountingApi(Api):
    """A connection that records its requests: method, and the last segment of the path."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.requests: list[str] = []

    async def _send(self, method: str, path: str, *arguments: Any) -> aiohttp.ClientResponse:
        self.requests.append(f"{method} {Path(path).name}")
        return await super()._send(method, path, *arguments)


class Trainer:
    """The trainer of job my-dog, its status server, and the cache of the process that contains it."""

    def __init__(self, plane: ControlPlane, namespace: str, api: CountingApi, reconciler: Reconciler) -> None:
        self.plane, self.namespace, self.api, self.reconciler = plane, namespace, api, reconciler
        self.key = Key(namespace, "my-dog")
        account = base_name(read_job(started_job(plane, namespace)))
        plane.kubectl("create", "serviceaccount", account, "-n", namespace)
        self.token = plane.kubectl("create", "token", account, "-n", namespace, f"--audience={AUDIENCE}").strip()
        self.watch = asyncio.create_task(reconciler._jobs.run())
        self.port = 0
        self.now = datetime.now(UTC)

    def job(self) -> dict[str, Any]:
        return self.plane.get("dbj", "my-dog", "-n", self.namespace)

    async def cache_is_current(self) -> None:
        version = self.job()["metadata"]["resourceVersion"]
        async with asyncio.timeout(60):
            while not (job := self.reconciler.cached_job(self.key)) or job.resource_version != version:
                await asyncio.sleep(0.05)

    async def freeze_cache(self) -> None:
        """From now on the cache is stale."""
        await self.cache_is_current()
        self.watch.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await self.watch

    async def report(self, attempt: int = 1, **fields: object) -> tuple[int, list[str]]:
        """Status code, and the requests that the report caused. It arrives two seconds after the one before."""
        self.now += timedelta(seconds=2)
        del self.api.requests[:]
        url = f"http://127.0.0.1:{self.port}/v1/jobs/{self.namespace}/my-dog/attempts/{attempt}"
        headers = {"Authorization": f"Bearer {self.token}"}
        async with aiohttp.ClientSession() as session, session.post(url, json=fields, headers=headers) as answer:
            if answer.status == 202:
                assert (await answer.json())["nextReportSeconds"] == 10
            return answer.status, self.api.requests


@pytest.fixture
async def trainer(plane: ControlPlane, namespace: str, api: Api) -> AsyncIterator[Trainer]:
    async with CountingApi(await find_connection(str(plane.kubeconfig))) as counting:
        reconciler = Reconciler(api, SETTINGS, now=lambda: datetime.now(UTC), progress_ca=str)
        tokens = TokenChecker(counting, AUDIENCE, clock=time.time)
        trainer = Trainer(plane, namespace, counting, reconciler)
        server = StatusServer(counting, tokens, cached=reconciler.cached_job, now=lambda: trainer.now)
        async with serving(server.app(), "127.0.0.1", 0) as port:
            trainer.port = port
            yield trainer
            trainer.watch.cancel()


async def test_report_causes_one_patch(trainer: Trainer) -> None:
    await trainer.cache_is_current()
    assert await trainer.report(phase="Train", step=1, steps=100) == (202, ["POST tokenreviews", "PATCH status"])
    for step in range(2, 12):
        await trainer.cache_is_current()
        assert await trainer.report(step=step) == (202, []), "progress is not due"
        assert await trainer.report(step=step, savedStep=step) == (202, ["PATCH status"])
    assert trainer.job()["status"]["training"]["savedStep"] == 11


async def test_report_is_accepted_without_a_current_cache(trainer: Trainer) -> None:
    trainer.watch.cancel()
    assert await trainer.report(phase="Prepare") == (202, ["POST tokenreviews", "GET my-dog", "PATCH status"])
    trainer.watch = asyncio.create_task(trainer.reconciler._jobs.run())
    await trainer.freeze_cache()
    assert await trainer.report(phase="Train") == (202, ["PATCH status"])
    stale = trainer.reconciler.cached_job(trainer.key)
    assert stale
    assert stale.status.report
    assert stale.status.report.phase == "Prepare"
    assert await trainer.report(phase="Evaluate") == (202, ["PATCH status", "GET my-dog", "PATCH status"])
    patch = '{"status": {"attempts": 2}}'
    trainer.plane.kubectl(
        "patch", "dbj", "my-dog", "-n", trainer.namespace, "--subresource=status", "--type=merge", "-p", patch
    )
    assert await trainer.report(attempt=2, phase="Prepare") == (202, ["GET my-dog", "PATCH status"])
    assert await trainer.report(phase="Publish") == (409, ["PATCH status", "GET my-dog"])
    assert trainer.job()["status"]["report"]["attempt"] == 2


async def test_stale_cache_does_not_admit_the_trainer_of_a_deleted_job(trainer: Trainer) -> None:
    await trainer.freeze_cache()
    namespace = trainer.namespace
    trainer.plane.kubectl("delete", "dbj", "my-dog", "-n", namespace)
    assert await trainer.report(phase="Train") == (404, ["POST tokenreviews", "PATCH status"])
    trainer.plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    patch = '{"status": {"phase": "Running", "attempts": 1}}'
    trainer.plane.kubectl(
        "patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch
    )
    assert await trainer.report(phase="Train") == (404, []), "rejections are remembered for a minute"
    trainer.now += timedelta(seconds=60)
    assert await trainer.report(phase="Train") == (403, ["PATCH status", "GET my-dog"])
    assert await trainer.report(phase="Train") == (403, [])
    assert "report" not in trainer.job()["status"]


async def test_stale_cache_does_not_admit_reports_of_a_job_that_is_being_deleted(trainer: Trainer) -> None:
    patch = '{"metadata": {"finalizers": ["dreambooth.dev/test"]}}'
    trainer.plane.kubectl("patch", "dbj", "my-dog", "-n", trainer.namespace, "--type=merge", "-p", patch)
    await trainer.freeze_cache()
    trainer.plane.kubectl("delete", "dbj", "my-dog", "-n", trainer.namespace, "--wait=false")
    assert await trainer.report(phase="Train") == (409, ["POST tokenreviews", "PATCH status", "GET my-dog"])
    assert "report" not in trainer.job()["status"]
    patch = '{"metadata": {"finalizers": null}}'
    trainer.plane.kubectl("patch", "dbj", "my-dog", "-n", trainer.namespace, "--type=merge", "-p", patch)
