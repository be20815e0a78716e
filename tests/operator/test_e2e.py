"""Jobs from start to end, with the real API server, the real KubeRay and the operator as a process."""

from __future__ import annotations

import functools
import json
import ssl
import time
import urllib.error
import urllib.request
from typing import Any

from devcluster import ControlPlane
from fakeray import FakeRay, Run
from operatorprocess import Operator, until


class Job:
    """A DreamBoothJob under test."""

    def __init__(
        self,
        plane: ControlPlane,
        ray: FakeRay,
        namespace: str,
        name: str,
        *,
        erase: bool = False,
        runtime: str = "default",
        spec: dict[str, Any] | None = None,
        **run_policy: object,
    ) -> None:
        self.plane, self.ray, self.namespace, self.name = plane, ray, namespace, name
        plane.apply(
            {
                "apiVersion": "dreambooth.dev/v1alpha1",
                "kind": "DreamBoothJob",
                "metadata": {"name": name, "namespace": namespace},
                "spec": {
                    "runtimeRef": {"name": runtime},
                    "subject": {"images": {"uri": "s3://photos/dog"}, "class": "dog"},
                    "output": {"uri": "s3://models/dog", "deletionPolicy": "Delete" if erase else "Retain"},
                    "runPolicy": run_policy,
                    **(spec or {}),
                },
            }
        )

    @property
    def status(self) -> dict[str, Any]:
        return self.plane.get("dbj", self.name, "-n", self.namespace).get("status", {})

    @functools.cached_property
    def tls(self) -> ssl.SSLContext:
        """The settings of a trainer, which trusts what the ConfigMap of its attempt contains."""
        data = self.plane.get("configmap", self.status["rayJobName"], "-n", self.namespace)["data"]
        return ssl.create_default_context(cadata=data["ca.crt"])

    def condition(self, kind: str) -> dict[str, Any]:
        return next((c for c in self.status.get("conditions", []) if c["type"] == kind), {})

    def reaches(self, *phases: str, seconds: float = 90) -> None:
        try:
            until(f"{self.name} is {phases}", lambda: self.status.get("phase") in phases, seconds)
        except AssertionError:
            print(json.dumps([self.status, *self.children("rayjobs"), *self.children("rayclusters")], indent=1))
            raise

    def runs(self, count: int = 1) -> Run:
        """Wait for this number of runs, and return the last one."""
        until(f"{self.name} runs {count} times", lambda: len(self.ray.of(self.name)) >= count, 90)
        self.reaches("Running")
        run = self.ray.latest(self.name)
        assert run
        return run

    def patch(self, policy: dict[str, object]) -> None:
        patch = json.dumps({"spec": {"runPolicy": policy}})
        self.plane.kubectl("patch", "dbj", self.name, "-n", self.namespace, "--type=merge", "-p", patch)

    def events(self) -> list[str]:
        selector = f"involvedObject.name={self.name}"
        return [
            e["reason"] for e in self.plane.get("events", "-n", self.namespace, f"--field-selector={selector}")["items"]
        ]

    def children(self, kind: str) -> list[dict[str, Any]]:
        return self.plane.get(kind, "-n", self.namespace, "-l", f"dreambooth.dev/job={self.name}")["items"]


def test_job_reports_progress_and_succeeds(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "good")
    run = job.runs()
    assert run.entrypoint == 'python -m dreambooth_trainer run /etc/dreambooth/job.yaml --out "$DREAMBOOTH_OUT"'
    answer = report(
        plane, operator, job, {"phase": "Train", "step": 120, "steps": 1000, "loss": 0.04231, "etaSeconds": 300}
    )
    assert answer == (202, "written")
    row = plane.kubectl("get", "dbj", "-n", namespace).splitlines()[1].split()
    assert row[:5] == ["good", "Running", "120/1000", "0.04231", "5m"]
    training = "The trainer is training the model."
    until("the phase is in the message", lambda: training in plane.kubectl("get", "dbj", "good", "-n", namespace))
    until("the class images are reported", lambda: job.condition("ClassImagesReady").get("status") == "True")
    report(
        plane,
        operator,
        job,
        {
            "phase": "publish",
            "step": 1000,
            "scores": {"dino": 0.7124, "clip_i": 0.8, "clipT": 0.3},
            "classImages": {"wanted": 200, "reused": 50, "generated": 150},
            "output": {"uri": "s3://models/dog/model", "digest": "sha256:abc"},
        },
    )
    ray.finish(run)
    job.reaches("Succeeded")
    status = job.status
    assert status["scores"] == {"dino": "0.712", "clipI": "0.800", "clipT": "0.300"}
    assert status["classImages"] == {"wanted": 200, "reused": 50, "generated": 150}
    assert status["output"]["digest"] == "sha256:abc"
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "ClusterReady", "ClassImagesReady", "Trained", "Evaluated", "Published", "Succeeded", "Ready"),
        "True",
    )
    assert sorted(job.events()) == ["AttemptStarted", "Running", "Succeeded"], "each event is recorded once"


def test_last_report_counts_after_the_end(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "delayed")
    run = job.runs()
    token = token_of(plane, job)
    report(plane, operator, job, {"phase": "Train", "step": 1, "steps": 2}, token=token)
    ray.finish(run)
    job.reaches("Succeeded")
    for kind in ("Evaluated", "Published"):
        assert job.condition(kind).get("status") == "Unknown"
        assert "did not arrive" in job.condition(kind)["message"]
    last = {
        "phase": "Publish",
        "step": 2,
        "steps": 2,
        "scores": {"dino": 0.7124},
        "output": {"uri": "s3://models/dog/model", "digest": "sha256:abc"},
    }
    answer = report(plane, operator, job, last, token=token)
    if answer[0] == 401:  # KubeRay has already deleted the pod, which invalidates its token
        answer = report(plane, operator, job, last, token=unbound_token(plane, job))
    assert answer == (202, "written")
    until("the conditions reflect the report", lambda: job.condition("Published").get("status") == "True")
    assert job.condition("Evaluated")["status"] == "True"
    assert job.condition("Succeeded")["message"] == "The model was published to s3://models/dog/model."
    assert job.status["scores"] == {"dino": "0.712"}


def test_failure_that_is_reported_late_replaces_the_assumed_one(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "explained", backoffLimit=0)
    ray.finish(job.runs(), "FAILED")
    job.reaches("Failed")
    assert job.condition("Failed")["reason"] == "BackoffLimitExceeded"
    failure = {"reason": "RayTaskError(OutOfMemoryError)", "message": "\x1b[31m32 GiB\x1b[0m", "retryable": False}
    answer = report(plane, operator, job, {"failure": failure}, token=unbound_token(plane, job))
    assert answer == (202, "written")
    until("the cause is in the conditions", lambda: job.condition("Failed")["reason"] == "OutOfMemoryError")
    assert job.condition("Failed")["message"] == job.status["lastFailure"]["message"] == "32 GiB"
    stale = report(plane, operator, job, {"step": 1}, attempt=7, token=unbound_token(plane, job))
    assert stale[0] == 409


def test_invalid_values_of_a_report_are_ignored(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "odd")
    job.runs()
    token = token_of(plane, job)
    for body, answer in (
        ({"step": 10**30}, 202),
        ({"phase": "Distill", "scores": {"lpips": {}}, "throughput": 3}, 202),
        ({"step": 10**9, "steps": 10**9, "etaSeconds": 1e300, "stepsPerSecond": 1e300, "loss": -1e300}, 202),
        ({"scores": {"dino": 1e300, "clipT": float("nan"), "pres": float("inf"), "div": -1e8}}, 202),
        ({"output": {"uri": "x" * 2001}}, 202),
        ({"output": {"uri": "\ud800\x00é", "digest": "\x1b[2J"}}, 400),
        ({"output": {"uri": "\x00é\n", "digest": "\x1b[2J"}}, 202),
        ({"failure": {"reason": "", "message": "x" * 9000}}, 202),
        ({"failure": {"reason": "a(b(c d))", "message": "\x00\x1b[2J"}}, 202),
        ({"classImages": {"wanted": 2**63}}, 202),
    ):
        assert report(plane, operator, job, body, token=token)[0] == answer, body
    assert job.status["report"]["failure"]["reason"] == "CD"


def test_report_needs_the_token_of_its_job(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job, other = Job(plane, ray, namespace, "mine"), Job(plane, ray, namespace, "theirs")
    job.runs()
    other.runs()
    assert report(plane, operator, job, {"step": 1}, token="made-up")[0] == 401
    assert report(plane, operator, job, {"step": 1}, token=token_of(plane, job, audience="api"))[0] == 401
    assert report(plane, operator, job, {"step": 1}, token=token_of(plane, other))[0] == 403
    assert report(plane, operator, job, {"step": 1}, attempt=2)[0] == 403
    assert report(plane, operator, job, ["step", 1])[0] == 400, "not an object"
    assert report(plane, operator, job, {"step": 1, "loss": float("nan")})[0] == 202
    assert "training" in job.status
    assert "loss" not in job.status["training"]


def test_user_error_is_not_retried(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    job = Job(plane, ray, namespace, "wrong")
    run = job.runs()
    failure = {"reason": "BadImages", "message": "images/1.png: is not an image; use a PNG or JPEG", "retryable": False}
    report(plane, operator, job, {"phase": "prepare", "failure": failure})
    ray.finish(run, "FAILED", exit_code=2)
    job.reaches("Failed")
    assert job.condition("Failed")["message"] == job.status["message"] == failure["message"]
    assert failure["message"] in plane.kubectl("get", "dbj", "wrong", "-n", namespace)
    assert len(ray.of("wrong")) == 1
    assert "is not an image; use a PNG or JPEG" in plane.kubectl("describe", "dbj", "wrong", "-n", namespace)


def test_job_is_retried_up_to_its_backoff_limit(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "unlucky", backoffLimit=1)
    ray.finish(job.runs(1), "FAILED")
    ray.finish(job.runs(2), "FAILED")
    job.reaches("Failed")
    assert job.condition("Failed")["reason"] == "BackoffLimitExceeded"
    assert job.status["attempts"] == 2
    assert "exit code 1" in job.condition("Failed")["message"]


def test_deadline_fails_a_job(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    job = Job(plane, ray, namespace, "slow", activeDeadlineSeconds=8)
    job.reaches("Failed")
    assert job.condition("Failed")["reason"] == "DeadlineExceeded"
    until("its pods are gone", lambda: not job.children("pods"))


def test_job_is_suspended_and_resumed(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    job = Job(plane, ray, namespace, "patient")
    job.runs(1)
    job.patch({"suspend": True})
    job.reaches("Suspended")
    assert not job.children("pods"), "a suspended job has no pods"
    job.patch({"suspend": False})
    ray.finish(job.runs(2))
    job.reaches("Succeeded")
    assert job.status["failures"] == 0


def test_deleted_job_leaves_no_children(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    job = Job(plane, ray, namespace, "unwanted")
    job.runs()
    plane.kubectl("delete", "dbj", "unwanted", "-n", namespace)
    for kind in ("rayjobs", "rayclusters", "pods", "configmaps", "serviceaccounts", "networkpolicies"):
        until(f"no {kind}", lambda kind=kind: not job.children(kind))


def test_data_is_deleted_before_the_job(plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str) -> None:
    job = Job(plane, ray, namespace, "secret", erase=True)
    job.runs()
    plane.kubectl("delete", "dbj", "secret", "-n", namespace, "--wait=false")
    until("the erase job exists", lambda: job.children("jobs"))
    assert job.status["phase"] == "Erasing"
    assert not job.children("pods"), "the trainer is deleted first"
    erase = job.children("jobs")[0]
    command = erase["spec"]["template"]["spec"]["containers"][0]["command"]
    assert command[:4] == ["python", "-m", "dreambooth_trainer", "erase"]
    time = "2026-01-01T00:00:00Z"
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": time, "lastProbeTime": time}
        for kind in ("SuccessCriteriaMet", "Complete")
    ]
    done = {"status": {"startTime": time, "completionTime": time, "succeeded": 1, "conditions": conditions}}
    plane.kubectl(
        *("patch", "job", erase["metadata"]["name"], "-n", namespace, "--subresource=status", "--type=merge"),
        *("-p", json.dumps(done)),
    )
    until("the job is gone", lambda: not plane.get("dbj", "-n", namespace)["items"])
    assert "Erased" in job.events()


def test_lost_ray_job_or_head_pod_is_a_failed_attempt(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job = Job(plane, ray, namespace, "unguarded")
    job.runs(1)
    plane.kubectl("delete", "rayjob", job.status["rayJobName"], "-n", namespace)
    job.runs(2)
    assert job.status["lastFailure"]["reason"] == "RayJobDeleted"
    until("its head pod is recorded", lambda: job.status.get("headPod"))
    plane.kubectl("delete", "pod", job.status["headPod"], "-n", namespace)
    run = job.runs(3)
    assert job.status["lastFailure"]["reason"] == "HeadLost"
    ray.finish(run)
    job.reaches("Succeeded")
    assert job.status["attempts"] == 3


def report(
    plane: ControlPlane,
    operator: Operator,
    job: Job,
    body: object,
    *,
    token: str | None = None,
    attempt: int | None = None,
) -> tuple[int, str]:
    """POST a report as the trainer in the head pod does. Returns the status code and the message.

    As the trainer, it retries a report that follows another one too soon.
    """
    token = token or token_of(plane, job)
    path = f"/v1/jobs/{job.namespace}/{job.name}/attempts/{attempt or job.status['attempts']}"
    request = urllib.request.Request(
        f"https://127.0.0.1:{operator.progress}{path}",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
    )
    try:
        with urllib.request.urlopen(request, timeout=20, context=job.tls) as answer:
            return answer.status, json.load(answer)["message"]
    except urllib.error.HTTPError as error:
        message = json.load(error)["message"]
        if message != "the job reports too often; retry":
            return error.code, message
    time.sleep(0.5)
    return report(plane, operator, job, body, token=token, attempt=attempt)


def token_of(plane: ControlPlane, job: Job, audience: str = "dreambooth-progress") -> str:
    """The token in the head pod's projected volume."""
    pods = [p for p in job.children("pods") if p["metadata"]["labels"]["ray.io/node-type"] == "head"]
    if not pods:
        return "none"
    pod = pods[0]
    bound = [
        f"--audience={audience}", "--bound-object-kind=Pod", f"--bound-object-name={pod['metadata']['name']}",
        f"--bound-object-uid={pod['metadata']['uid']}",
    ]  # fmt: skip
    return plane.kubectl("create", "token", pod["spec"]["serviceAccountName"], "-n", job.namespace, *bound).strip()


def unbound_token(plane: ControlPlane, job: Job, audience: str = "dreambooth-progress") -> str:
    """A token of the job's service account that is not bound to a pod."""
    account = job.children("serviceaccounts")[0]["metadata"]["name"]
    return plane.kubectl("create", "token", account, "-n", job.namespace, f"--audience={audience}").strip()
