"""Containers that the kernel killed for lack of memory: the job ends with the limit and the field to increase."""

from __future__ import annotations

import pytest
from scenarios import fail, lose_head, report_bad_images, running
from simulation import World, make_job

from dreambooth_api.status import Failure, Phase
from dreambooth_operator.controller.observed_pods import Pod, read_pod
from dreambooth_operator.machinery.resources import Json

KILLED = {"terminated": {"reason": "OOMKilled", "exitCode": 137}}


def pod(kind: str, state: Json, *, limit: str | None = "16Gi", container: str = "") -> Pod:
    labels = {"dreambooth.dev/job": "dog", "dreambooth.dev/attempt": "1", "ray.io/node-type": kind}
    metadata = {"name": f"c-{kind}", "uid": kind, "creationTimestamp": "2026-11-24T06:00:00Z", "labels": labels}
    name = container or f"ray-{kind}"
    resources = {"limits": {"memory": limit}} if limit else {}
    status = {"phase": "Running", "containerStatuses": [{"name": name, **state}]}
    spec = {"nodeName": "n1", "containers": [{"name": name, "resources": resources}]}
    return read_pod({"metadata": metadata, "spec": spec, "status": status})


def running_world(*pods: Pod) -> World:
    world = World(make_job(backoffLimit=3))
    world.reconcile()
    running(world)
    world.reconcile()
    world.pods = list(pods)
    return world


def failure_of(world: World) -> Failure:
    world.reconcile()
    assert world.status.last_failure
    return world.status.last_failure


CASES = {
    "a worker that ended": (
        pod("worker", {"state": KILLED}),
        "Pod c-worker: the kernel killed container ray-worker, which exceeded its memory limit of 16Gi. Increase "
        "spec.cluster.resources.memory, or pods.worker.memory in the runtime, and create the job again.",
    ),
    "a worker that restarted in place": (
        pod("worker", {"state": {"running": {}}, "lastState": KILLED}), "container ray-worker, which exceeded",
    ),
    "the head": (
        pod("head", {"state": KILLED}, limit="8Gi"),
        "Pod c-head: the kernel killed container ray-head, which exceeded its memory limit of 8Gi. Increase "
        "pods.head.memory in the runtime, and create the job again.",
    ),
    "without a limit": (
        pod("worker", {"state": KILLED}, limit=None),
        "Pod c-worker: the kernel killed container ray-worker, which has no memory limit, because node n1 ran out of "
        "memory. Increase",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_a_container_that_was_killed_for_memory_ends_the_job(name: str) -> None:
    killed, message = CASES[name]
    world = running_world(killed)
    failure = failure_of(world)
    assert (failure.reason, failure.retryable) == ("OutOfMemory", False)
    assert message in failure.message
    assert world.status.phase is Phase.FAILED
    assert world.status.attempts == 1


@pytest.mark.parametrize("end", [fail, lose_head])
def test_the_kill_explains_an_attempt_that_ended(end: object) -> None:
    world = running_world(pod("head", {"state": KILLED}))
    assert callable(end)
    end(world)
    assert failure_of(world).reason == "OutOfMemory"
    assert world.status.phase is Phase.FAILED


LOST = Failure(reason="ActorDiedError", message="The actor died unexpectedly", retryable=True)


@pytest.mark.parametrize("late", [False, True])
def test_the_kill_explains_the_lost_process_that_the_trainer_reports(late: bool) -> None:
    world = running_world(pod("worker", {"state": KILLED}))
    if late:
        world.reconcile()
    world.report(failure=LOST)
    fail(world)
    assert failure_of(world).reason == "OutOfMemory"
    assert world.status.phase is Phase.FAILED


def test_an_invalid_input_that_the_trainer_reports_is_closer_to_the_cause() -> None:
    world = running_world(pod("worker", {"state": KILLED}))
    report_bad_images(world)
    assert failure_of(world).reason == "BadImages"


@pytest.mark.parametrize(
    "other",
    [
        pod("worker", {"state": {"terminated": {"reason": "Error", "exitCode": 137}}}),
        pod("head", {"state": KILLED}, container="autoscaler"),
    ],
    ids=["SIGKILL of another cause", "a sidecar"],
)
def test_other_ends_of_containers_are_not_out_of_memory(other: Pod) -> None:
    world = running_world(other)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
