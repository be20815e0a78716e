"""status.startedWith with the real API server and KubeRay: the runtime changes between attempts, then it is gone."""

from __future__ import annotations

import contextlib
from typing import Any

from devcluster import ControlPlane, ProcessError
from fakeray import FakeRay
from operatorprocess import RUNTIME, Operator, until
from test_e2e import Job, report

COMMIT = "b" * 40


def claim(obj: dict[str, Any]) -> str:
    """The claim of the output in a RayJob or a batch Job."""
    spec = obj["spec"]
    template = spec["template"] if "template" in spec else spec["rayClusterSpec"]["headGroupSpec"]["template"]
    (output,) = [volume for volume in template["spec"]["volumes"] if volume["name"] == "output"]
    return output["persistentVolumeClaim"]["claimName"]


def test_retry_and_deletion_keep_to_the_first_attempt(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    runtime: dict[str, Any] = {**RUNTIME, "metadata": {"name": "moving"}}
    plane.apply(runtime)
    job = Job(plane, ray, namespace, "kept", erase=True, runtime="moving")
    run = job.runs()
    started = job.status["startedWith"]
    uid = plane.get("dbr", "moving")["metadata"]["uid"]
    assert started["runtime"] == {"name": "moving", "uid": uid, "generation": 1}
    assert (started["claimName"], started["folder"], started["image"]) == ("work", "kept", "localhost/trainer:1")
    until("the digest is recorded", lambda: job.status["startedWith"].get("imageDigest") == f"sha256:{'e' * 64}")
    assert report(plane, operator, job, {"phase": "Prepare", "modelCommit": COMMIT})[0] == 202
    other = {**RUNTIME["spec"], "image": "localhost/other:2", "storage": {"claimName": "other"}}  # type: ignore[dict-item]
    plane.apply({**runtime, "spec": other})
    ray.finish(run, "FAILED")
    job.runs(2)
    (ray_job,) = job.children("rayjobs")
    assert ray_job["metadata"]["name"] == job.status["rayJobName"]
    assert claim(ray_job) == "work"
    head = ray_job["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]["containers"][0]
    assert head["image"] == f"localhost/trainer@sha256:{'e' * 64}"
    files = [c["data"]["job.yaml"] for c in job.children("configmaps")]
    assert any(f'"{COMMIT}"' in text for text in files)

    plane.kubectl("delete", "dbr", "moving", "--wait=false")
    with contextlib.suppress(ProcessError):  # it is gone already, or the finalizer that protects it is removed by force
        plane.kubectl("patch", "dbr", "moving", "--type=merge", "-p", '{"metadata":{"finalizers":null}}')
    until("the job states that its runtime is gone", lambda: job.condition("Accepted").get("status") == "False")
    assert job.condition("Accepted")["reason"] == "RuntimeNotFound"
    job.reaches("Running")
    plane.kubectl("delete", "dbj", "kept", "-n", namespace, "--wait=false")
    until("the data is being deleted", lambda: job.children("jobs"), 90)
    (erase,) = job.children("jobs")
    assert claim(erase) == "work"
    assert erase["spec"]["template"]["spec"]["containers"][0]["image"] == head["image"]
