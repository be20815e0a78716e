"""The reason in a Kueue Workload reaches the message of a queued job."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestServer
from scenarios import messages
from simulation import SETTINGS, START, World, make_job

from dreambooth_api.status import Phase
from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.queueing.workload import waiting_reason
from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.machinery.client import Api

NO_QUOTA = "couldn't assign flavors to pod set head: insufficient unused quota for cpu in flavor default, 1 more needed"


def workload(reason: str, message: str, *, kind: str = "QuotaReserved", status: str = "False") -> dict[str, Any]:
    condition = {"type": kind, "status": status, "reason": reason, "message": message}
    return {"status": {"conditions": [condition]}}


def queued_world() -> World:
    world = World(make_job(queueName="gpus"))
    world.reconcile()
    world.reconcile()
    assert world.status.phase is Phase.QUEUED
    assert world.status.ray_job_uid
    return world


def test_reason_of_the_first_condition_that_is_not_met() -> None:
    assert waiting_reason([workload("Pending", NO_QUOTA)]) == f"Kueue: Pending: {NO_QUOTA}"
    assert waiting_reason([workload("Inadmissible", "LocalQueue gpus\ndoesn't exist")]) == (
        "Kueue: Inadmissible: LocalQueue gpus doesn't exist"
    )
    assert waiting_reason([]) == waiting_reason([{}]) == waiting_reason([workload("Ok", "Ok", status="True")]) == ""


def test_reason_is_in_the_message_and_the_condition() -> None:
    world = queued_world()
    assert world.observe().decide().requeue_after_seconds == 15
    snapshot = world.observe()
    observed = dataclasses.replace(snapshot.observed, queue_reason=f"Kueue: Pending: {NO_QUOTA}")
    decision = decide(snapshot.job, snapshot.resolution, observed, snapshot.now, SETTINGS)
    (write,) = decision.actions
    assert isinstance(write, WriteStatus)
    world.act(snapshot, write, first=True)
    assert world.status.message == f"Waiting for admission by queue gpus. Kueue: Pending: {NO_QUOTA}"
    assert messages(world)["Queued"] == world.status.message
    assert decision.requeue_after_seconds == 300


async def test_workload_is_selected_by_the_uid_of_the_ray_job(tmp_path: Any) -> None:
    requests: list[tuple[str, str]] = []
    answers = [web.json_response({"items": [workload("Pending", NO_QUOTA)]}), web.json_response({}, status=404)]

    async def respond(request: web.Request) -> web.Response:
        requests.append((request.path, request.query["labelSelector"]))
        return answers.pop(0)

    app = web.Application()
    app.router.add_get("/{path:.*}", respond)
    world = queued_world()
    assert world.job
    async with TestServer(app) as server:
        cluster = {"name": "c", "cluster": {"server": str(server.make_url("")).rstrip("/")}}
        config = {
            "apiVersion": "v1", "kind": "Config", "current-context": "c", "clusters": [cluster],
            "users": [{"name": "u", "user": {}}], "contexts": [{"name": "c", "context": {"cluster": "c", "user": "u"}}],
        }  # fmt: skip
        path = tmp_path / "config"
        path.write_text(json.dumps(config))
        async with await Api.connect(str(path)) as api:
            reconciler = Reconciler(api, SETTINGS, now=lambda: START, progress_ca=str)
            assert await reconciler._queue_reason(world.job) == f"Kueue: Pending: {NO_QUOTA}"
            assert await reconciler._queue_reason(world.job) == "", "Kueue is not installed"
    uid = world.status.ray_job_uid
    assert requests == [("/apis/kueue.x-k8s.io/v1beta2/namespaces/team/workloads", f"kueue.x-k8s.io/job-uid={uid}")] * 2
