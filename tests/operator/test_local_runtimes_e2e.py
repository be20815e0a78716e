"""LocalDreamBoothRuntimes on the real API server: an operator that allows them, with the chart's permissions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, ProcessError, helm
from fakeray import FakeRay
from operatorprocess import RUNTIME, SYSTEM, Operator, until
from test_e2e import Job

from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.resources import LOCAL_RUNTIMES, RUNTIME_FINALIZER

CHART = Path(__file__).resolve().parents[2] / "charts" / "dreambooth-operator"
LOCAL = {"runtimeRef": {"kind": "LocalDreamBoothRuntime", "name": "own"}}


@pytest.fixture(scope="module")
def allowing(plane: ControlPlane, ray: FakeRay) -> Iterator[Operator]:
    """An operator with localRuntimes.enabled."""
    flags = ("--set", "localRuntimes.enabled=true", "-n", SYSTEM)
    rendered = list(filter(None, yaml.safe_load_all(helm(None, "template", str(CHART), *flags))))
    wanted = [obj for obj in rendered if obj["kind"] == "ClusterRole" and obj["metadata"]["name"].endswith("operator")]
    container = next(o for o in rendered if o["kind"] == "Deployment")["spec"]["template"]["spec"]["containers"][0]
    assert "--local-runtimes" in container["args"]
    plane.apply(RUNTIME, *wanted)
    operator = Operator(plane, "allowing", "--local-runtimes").start()
    yield operator
    operator.process.kill()


def own(namespace: str, **spec: object) -> dict[str, Any]:
    return {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "LocalDreamBoothRuntime",
        "metadata": {"name": "own", "namespace": namespace},
        "spec": {"parent": "default", **spec},
    }


def job_of(plane: ControlPlane, ray: FakeRay, namespace: str, name: str) -> Job:
    return Job(plane, ray, namespace, name, spec=LOCAL)


def as_user(plane: ControlPlane, namespace: str, role: str) -> tuple[str, str]:
    api_version = "rbac.authorization.k8s.io/v1"
    reference = {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role}
    user = {"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": role}
    metadata = {"name": role, "namespace": namespace}
    plane.apply(
        {
            "apiVersion": api_version,
            "kind": "RoleBinding",
            "metadata": metadata,
            "roleRef": reference,
            "subjects": [user],
        }
    )
    return f"--as={role}", "--as-group=system:authenticated"


def test_job_follows_its_local_runtime(plane: ControlPlane, ray: FakeRay, allowing: Operator, namespace: str) -> None:
    # A user of the namespace writes it; a reader cannot.
    text = json.dumps(own(namespace, image="evil.example/trainer", pods={"worker": {"cpu": "500m"}}))
    with pytest.raises(ProcessError, match="forbidden"):
        plane.kubectl("create", "-f", "-", *as_user(plane, namespace, "dreambooth-operator-viewer"), stdin=text)
    plane.kubectl("create", "-f", "-", *as_user(plane, namespace, "dreambooth-operator-user"), stdin=text)
    job = job_of(plane, ray, namespace, "tenant")
    job.reaches("Rejected")
    assert job.condition("Accepted")["reason"] == "RuntimeInvalid"
    assert "'own' is not valid; correct it: spec.image: 'evil.example/trainer'" in job.status["message"]

    plane.kubectl("patch", "ldbr", "own", "-n", namespace, "--type=merge", "-p", '{"spec":{"image":null}}')
    run = job.runs()
    assert job.status["startedWith"]["runtime"]["parent"] == "default"
    (ray_job,) = job.children("rayjobs")
    worker = ray_job["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]["containers"][0]
    assert worker["resources"]["requests"]["cpu"] == "500m"
    assert worker["image"] == RUNTIME["spec"]["image"]  # type: ignore[index]

    assert RUNTIME_FINALIZER in plane.get("ldbr", "own", "-n", namespace)["metadata"]["finalizers"]
    plane.kubectl("delete", "ldbr", "own", "-n", namespace, "--wait=false")
    late = job_of(plane, ray, namespace, "late")
    late.reaches("Rejected")
    assert late.condition("Accepted")["reason"] == "RuntimeDeleting"
    selector = "--field-selector=involvedObject.kind=LocalDreamBoothRuntime,involvedObject.name=own"
    until(
        "an event names the job",
        lambda: f"{namespace}/tenant" in plane.kubectl("get", "events", "-n", namespace, selector),
    )
    ray.finish(run)
    job.reaches("Succeeded")
    until("it is deleted", lambda: plane.get("ldbr", "-n", namespace)["items"] == [])


def test_fields_of_the_platform_are_not_in_the_schema(plane: ControlPlane, namespace: str) -> None:
    for field, value in (("bounds", {"maxSteps": 1}), ("network", {}), ("allowedNamespaces", [namespace])):
        with pytest.raises(ProcessError, match=f'unknown field "spec.{field}"'):
            plane.kubectl("create", "-f", "-", stdin=json.dumps(own(namespace, **{field: value})))
    with pytest.raises(ProcessError, match=r"spec.parent: Required"):
        plane.kubectl("create", "-f", "-", stdin=json.dumps({**own(namespace), "spec": {}}))


@pytest.mark.parametrize("part", [{}, {"pods": {}}, {"model": {}}, {"storage": {"claimName": "a"}}], ids=str)
async def test_server_and_python_apply_the_same_defaults(api: Api, part: dict[str, Any]) -> None:
    query = {"dryRun": "All", "fieldValidation": "Strict"}
    stored = await api.request("POST", LOCAL_RUNTIMES.path("default"), query=query, body=own("default", **part))
    ours = LocalRuntimeSpec.model_validate({"parent": "default", **part})
    assert LocalRuntimeSpec.model_validate(stored["spec"]) == ours
