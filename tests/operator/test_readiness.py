"""Conditions Reconciling, Stalled and Ready, judged as kstatus does."""

from __future__ import annotations

import json
from typing import Any

from devcluster import ControlPlane
from fakeray import FakeRay
from operatorprocess import Operator, until
from scenarios import conditions, fail_with_user_error, resume, running, succeed, suspend
from simulation import World, make_job


def kstatus(generation: int, status: dict[str, Any]) -> str:
    """The rules of kstatus for objects of any kind, in its order."""
    if status.get("observedGeneration", generation) != generation:
        return "InProgress"
    found = {c["type"]: c["status"] for c in status.get("conditions", [])}
    if found.get("Reconciling") == "True":
        return "InProgress"
    if found.get("Stalled") == "True":
        return "Failed"
    return "Current" if found.get("Ready", "True") == "True" else "InProgress"


def judge(world: World) -> str:
    assert world.job
    return kstatus(world.job.generation, world.status.model_dump(mode="json", by_alias=True))


def test_judgement_of_a_new_job_depends_on_its_generation() -> None:
    assert kstatus(1, {}) == "Current", "why the API server sets a default"
    assert kstatus(1, {"observedGeneration": -1}) == "InProgress"


def test_job_is_in_progress_until_it_has_succeeded() -> None:
    world = World(make_job())
    world.reconcile()
    assert judge(world) == "InProgress"
    assert conditions(world)["Reconciling"] == ("True", "Starting")
    running(world)
    world.reconcile()
    assert judge(world) == "InProgress"
    assert conditions(world)["Ready"] == ("False", "Running")
    succeed(world)
    world.reconcile()
    assert judge(world) == "Current"
    assert conditions(world)["Ready"] == ("True", "Succeeded")
    assert not {"Reconciling", "Stalled"} & conditions(world).keys(), "abnormal conditions exist only while true"


def test_failed_job_is_stalled_with_its_reason() -> None:
    world = World(make_job())
    world.reconcile()
    fail_with_user_error(world)
    world.reconcile()
    assert judge(world) == "Failed"
    assert conditions(world)["Stalled"] == ("True", "InvalidInput")
    assert conditions(world)["Ready"] == ("False", "InvalidInput")


def test_rejected_job_is_stalled_until_its_cause_is_fixed() -> None:
    world = World(make_job())
    runtime, world.runtime = world.runtime, None
    world.reconcile()
    assert judge(world) == "Failed"
    assert conditions(world)["Stalled"] == ("True", "RuntimeNotFound")
    world.runtime = runtime
    world.reconcile()
    assert judge(world) == "InProgress"


def test_suspended_job_is_neither_failed_nor_ready() -> None:
    world = World(make_job())
    world.reconcile()
    suspend(world)
    world.reconcile()
    world.collect()
    world.reconcile()
    assert judge(world) == "InProgress"
    assert conditions(world)["Ready"] == ("False", "Suspended")
    assert not {"Reconciling", "Stalled"} & conditions(world).keys()
    resume(world)
    world.reconcile()
    assert conditions(world)["Reconciling"] == ("True", "Starting")


def test_job_that_no_operator_has_seen_is_in_progress(plane: ControlPlane, namespace: str) -> None:
    schema = plane.get("crd", "dreamboothjobs.dreambooth.dev")["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    assert schema["properties"]["status"]["default"] == {"observedGeneration": -1}
    created = json.loads(
        plane.kubectl("create", "-n", namespace, "-o", "json", "-f", "-", stdin=json.dumps(_job("unseen")))
    )
    assert kstatus(created["metadata"]["generation"], created["status"]) == "InProgress"


def test_kubectl_wait_for_ready(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    plane.apply({**_job("waited"), "metadata": {"name": "waited", "namespace": namespace}})

    def read() -> str:
        job = plane.get("dbj", "waited", "-n", namespace)
        return kstatus(job["metadata"]["generation"], job["status"])

    until("the trainer runs", lambda: ray.of("waited"))
    assert read() == "InProgress"
    run = ray.latest("waited")
    assert run
    ray.finish(run)
    plane.kubectl("wait", "dbj/waited", "-n", namespace, "--for=condition=Ready", "--timeout=60s")
    assert read() == "Current"


def _job(name: str) -> dict[str, Any]:
    return {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": name},
        "spec": {
            "subject": {"images": {"uri": "s3://photos/dog"}, "class": "dog"},
            "output": {"uri": "s3://models/dog"},
        },
    }
