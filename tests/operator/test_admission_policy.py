"""What the admission policy of the chart lets the operator's account create, on the real API server."""

from __future__ import annotations

import copy
import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from devcluster import ControlPlane, ProcessError
from operatorprocess import SYSTEM
from simulation import RUNTIME, attempt_objects, job_with

from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.resources import Json

ACCOUNT = f"--as=system:serviceaccount:{SYSTEM}:dreambooth-operator"


def children() -> dict[str, Json]:
    """A child of each kind, of an elastic job."""
    cluster = {"elastic": {"minWorkers": 1, "maxWorkers": 2}}
    job = job_with({"output": {"uri": "s3://b/out"}, "cluster": cluster})
    found = resolve(job, RUNTIME, [])
    assert isinstance(found, ResolvedJob)
    made = [*attempt_objects(job, 1, found), *erase_children(job, found)]
    return copy.deepcopy({obj["kind"]: obj for _, obj in made})


def create(plane: ControlPlane, namespace: str, obj: Json, *user: str) -> None:
    """Create without storing."""
    obj = {**obj, "metadata": {**obj["metadata"], "namespace": namespace}}
    plane.kubectl("create", "--dry-run=server", "-f", "-", *user, stdin=json.dumps(obj))


def head(obj: Json) -> Json:
    return obj["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]


def worker(obj: Json) -> Json:
    return obj["spec"]["rayClusterSpec"]["workerGroupSpecs"][0]["template"]["spec"]


def erase(obj: Json) -> Json:
    return obj["spec"]["template"]["spec"]


HOST = {"name": "host", "hostPath": {"path": "/"}}
PRIVILEGED = {"name": "more", "image": "x", "securityContext": {"privileged": True}}
REFUSED: dict[str, tuple[str, Callable[[Json], Any], str]] = {
    "a foreign object": ("ConfigMap", lambda o: o["metadata"].pop("ownerReferences"), "only children"),
    "an object without the label": ("RayJob", lambda o: o["metadata"].pop("labels"), "only children"),
    "an object of a RayJob": (
        "NetworkPolicy",
        lambda o: o["metadata"]["ownerReferences"][0].update(kind="RayJob", apiVersion="ray.io/v1"),
        "only children",
    ),
    "an owner of another kind": (
        "NetworkPolicy", lambda o: o["metadata"]["ownerReferences"][0].update(kind="Pod"), "only children",
    ),
    "an account with a token": ("ServiceAccount", lambda o: o.update(automountServiceAccountToken=True), "dbj-"),
    "an account of another name": ("ServiceAccount", lambda o: o["metadata"].update(name="default"), "dbj-"),
    "pods with another account": ("RayJob", lambda o: worker(o).update(serviceAccountName="admin"), "dbj-"),
    "pods with a token": ("RayJob", lambda o: head(o).update(automountServiceAccountToken=True), "dbj-"),
    "an erase pod with another account": ("Job", lambda o: erase(o).update(serviceAccountName="admin"), "dbj-"),
    "a folder of the host": ("RayJob", lambda o: worker(o)["volumes"].append(HOST), "non-root"),
    "a folder of the host to erase": ("Job", lambda o: erase(o)["volumes"].append(HOST), "non-root"),
    "the network of the host": ("RayJob", lambda o: head(o).update(hostNetwork=True), "non-root"),
    "processes of the host": ("RayJob", lambda o: worker(o).update(hostPID=True), "non-root"),
    "root": ("RayJob", lambda o: head(o)["securityContext"].update(runAsNonRoot=False), "non-root"),
    "a privileged container": ("RayJob", lambda o: worker(o)["containers"].append(PRIVILEGED), "no privileges"),
    "a privileged init container": ("RayJob", lambda o: head(o).update(initContainers=[PRIVILEGED]), "no privileges"),
    "a capability": (
        "RayJob",
        lambda o: head(o)["containers"][0]["securityContext"]["capabilities"].update(add=["SYS_ADMIN"]),
        "no privileges",
    ),
    "a submitter pod": (
        "RayJob", lambda o: o["spec"].update(submissionMode="K8sJobMode"), "no submitter pod",
    ),
    "another cluster": ("RayJob", lambda o: o["spec"].update(clusterSelector={"a": "b"}), "own cluster"),
    "another autoscaler": (
        "RayJob", lambda o: o["spec"]["rayClusterSpec"]["autoscalerOptions"].update(image="x"), "autoscaler",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def enforced(plane: ControlPlane) -> None:
    """Returns when the API server enforces the policy, which takes a moment."""
    obj = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "probe"}}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            create(plane, "default", obj, ACCOUNT)
        except ProcessError:
            return
        time.sleep(0.5)
    raise AssertionError("the policy is not enforced")


@pytest.mark.parametrize("kind", ["ServiceAccount", "NetworkPolicy", "ConfigMap", "RayJob", "Job"])
def test_operator_creates_its_children(plane: ControlPlane, namespace: str, enforced: None, kind: str) -> None:
    create(plane, namespace, children()[kind], ACCOUNT)


@pytest.mark.parametrize("case", REFUSED)
def test_operator_creates_nothing_else(plane: ControlPlane, namespace: str, enforced: None, case: str) -> None:
    kind, change, message = REFUSED[case]
    obj = children()[kind]
    change(obj)
    with pytest.raises(ProcessError, match=message):
        create(plane, namespace, obj, ACCOUNT)


def test_others_are_not_limited(plane: ControlPlane, namespace: str, enforced: None) -> None:
    obj = children()["RayJob"]
    head(obj)["volumes"].append(HOST)
    del obj["metadata"]["ownerReferences"]
    create(plane, namespace, obj)
