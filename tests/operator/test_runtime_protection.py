"""A runtime that is deleted exists until no unfinished job uses it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from devcluster import ControlPlane, ProcessError
from fakeray import FakeRay
from operatorprocess import RUNTIME, Operator, until
from simulation import World, job_with
from test_e2e import Job

from dreambooth_api.status import Phase
from dreambooth_operator.controller.observed import CachedJob, Runtime, cache_job, read_runtime
from dreambooth_operator.controller.runtime_protection import uses_runtime, wanted_finalizers
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import RUNTIME_FINALIZER

OTHERS = "example.com/other"


def runtime(*finalizers: str, deleting: bool = False) -> Runtime:
    return Runtime("gpu", None, finalizers=finalizers, deleting=deleting)


def cached(status: dict[str, Any], text: str = "") -> CachedJob:
    return cache_job({"metadata": {"name": "dog"}, "spec": {"subject": {"class": text}}, "status": status})


STARTED = {"phase": "Running", "startedWith": {"runtime": {"name": "gpu"}}}


@pytest.mark.parametrize(
    ("found", "in_use", "wanted"),
    [
        (runtime(), False, [RUNTIME_FINALIZER]),
        (runtime(OTHERS), False, [OTHERS, RUNTIME_FINALIZER]),
        (runtime(RUNTIME_FINALIZER), False, None),
        (runtime(RUNTIME_FINALIZER, OTHERS, deleting=True), False, [OTHERS]),
        (runtime(RUNTIME_FINALIZER, deleting=True), True, None),
        (runtime(OTHERS, deleting=True), True, None),
    ],
)
def test_finalizer_follows_the_use(found: Runtime, in_use: bool, wanted: list[str] | None) -> None:
    assert wanted_finalizers(found, in_use=in_use) == wanted


def test_only_a_started_and_unfinished_job_uses_its_runtime() -> None:
    gpu = Key("", "gpu")
    assert uses_runtime(cached(STARTED), gpu)
    assert not uses_runtime(cached(STARTED), Key("", "cpu"))
    assert not uses_runtime(cached({"phase": "Rejected"}), gpu), "it would be protected for ever"
    for phase in (Phase.SUCCEEDED, Phase.FAILED, Phase.ERASING):
        assert not uses_runtime(cached({**STARTED, "phase": phase.value}), gpu)
    assert uses_runtime(cached(STARTED, '"phase":"Failed"'), gpu), "text of a user"
    assert uses_runtime(cached({**STARTED, "report": {"phase": "Failed"}}), gpu), "the phase of a trainer"


def test_job_of_a_local_runtime_uses_it_and_its_parent() -> None:
    local = cached({"phase": "Running", "startedWith": {"runtime": {"name": "own", "parent": "gpu"}}})
    assert uses_runtime(local, Key("team", "own"))
    assert uses_runtime(local, Key("", "gpu"))
    assert not uses_runtime(local, Key("", "own")), "a DreamBoothRuntime of the same name"
    assert not uses_runtime(local, Key("team", "gpu"))
    assert not uses_runtime(cached(STARTED), Key("team", "gpu")), "a LocalDreamBoothRuntime of the same name"


def test_job_does_not_start_with_a_runtime_that_is_being_deleted() -> None:
    metadata = {"name": "default", "uid": "r", "resourceVersion": "1", "deletionTimestamp": "2026-11-24T06:00:00Z"}
    spec = {"image": "trainer:1", "storage": {"claimName": "work"}}
    world = World(job_with({}), read_runtime({"metadata": metadata, "spec": spec}))
    world.reconcile()
    assert world.status.phase is Phase.REJECTED
    assert "is being deleted; set spec.runtimeRef.name" in world.status.message


def test_deleted_runtime_waits_for_its_job(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    name = "protected"
    plane.apply({**RUNTIME, "metadata": {"name": name}})
    until("it is protected", lambda: RUNTIME_FINALIZER in plane.get("dbr", name)["metadata"].get("finalizers", ()))
    job = Job(plane, ray, namespace, "user", runtime=name)
    run = job.runs()
    plane.kubectl("delete", "dbr", name, "--wait=false")

    def reasons() -> list[str]:
        events = plane.get("events", "-n", "default", f"--field-selector=involvedObject.name={name}")
        return [f"{event['reason']}: {event['message']}" for event in events["items"]]

    until("an event names the job", lambda: any(f"{namespace}/user" in text for text in reasons()))
    late = Job(plane, ray, namespace, "late", runtime=name)
    late.reaches("Rejected")
    assert late.condition("Accepted")["reason"] == "RuntimeDeleting"
    assert plane.get("dbr", name)["metadata"]["deletionTimestamp"]
    assert job.status["phase"] == "Running"
    ray.finish(run)
    job.reaches("Succeeded")
    until("it is deleted", lambda: name not in plane.kubectl("get", "dbr", "-o", "name"))


def test_ordinary_user_reads_runtimes(plane: ControlPlane, namespace: str) -> None:
    plane.apply({**RUNTIME, "metadata": {"name": "readable"}})
    role = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "ann"}
    metadata = {"name": "ann", "namespace": namespace}
    api_version = "rbac.authorization.k8s.io/v1"
    plane.apply(
        {"apiVersion": api_version, "kind": "RoleBinding", "metadata": metadata, "roleRef": role, "subjects": [user]}
    )
    as_ann = ("--as=ann", "--as-group=system:authenticated")
    shown = json.loads(plane.kubectl("get", "dbr", "readable", "-o", "json", *as_ann))
    assert shown["spec"]["image"] == RUNTIME["spec"]["image"]  # type: ignore[index]
    with pytest.raises(ProcessError, match="forbidden"):
        plane.kubectl("delete", "dbr", "readable", *as_ann)
