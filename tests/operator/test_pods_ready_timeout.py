"""Pods that do not become ready in time: the job deletes its pods and retries, on the real API server."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from devcluster import ControlPlane
from fakeray import FakeRay
from operatorprocess import RUNTIME, Operator
from test_e2e import Job


@pytest.fixture
def impatient_operator(plane: ControlPlane, ray: FakeRay) -> Iterator[None]:
    plane.apply(RUNTIME)
    operator = Operator(plane, "impatient", "--pods-ready-seconds=15").start()
    yield
    operator.process.kill()


def test_job_whose_pods_are_not_ready_in_time_deletes_them_and_retries(
    plane: ControlPlane, ray: FakeRay, impatient_operator: None, namespace: str
) -> None:
    ray.without_workers.add(namespace)
    job = Job(plane, ray, namespace, "crowded", backoffLimit=0)
    job.reaches("Retrying")
    failure = job.status["lastFailure"]
    assert failure["reason"] == "PodsNotReady"
    assert "Head ready, 0 of 1 workers ready." in failure["message"]
    assert not ray.of("crowded"), "the trainer must not run"
    ray.without_workers.clear()
    ray.finish(job.runs())
    job.reaches("Succeeded")
    assert job.status.get("failures", 0) == 0, "a timeout does not count as a failure"
    assert len(job.children("rayjobs")) == 1, "the first RayJob is deleted, with its pods"
