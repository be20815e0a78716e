"""Pods that do not come: a job gives back those that did, and gets all of them later."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from conftest import RUNTIME, Operator
from devcluster import ControlPlane
from fakeray import FakeRay
from test_e2e import Job


@pytest.fixture
def hasty(plane: ControlPlane, ray: FakeRay) -> Iterator[None]:
    plane.apply(RUNTIME)
    operator = Operator(plane, "hasty", "--pods-ready-seconds=5").start()
    yield
    operator.process.kill()


def test_a_job_without_all_its_pods_makes_room_and_tries_again(
    plane: ControlPlane, ray: FakeRay, hasty: None, namespace: str
) -> None:
    ray.without_workers.add(namespace)
    job = Job(plane, ray, namespace, "crowded", backoffLimit=0)
    job.reaches("Retrying")
    failure = job.status["lastFailure"]
    assert failure["reason"] == "PodsNotReady"
    assert "Head ready, 0 of 1 workers ready." in failure["message"]
    assert not ray.of("crowded"), "nothing was run"
    ray.without_workers.clear()
    ray.finish(job.runs())
    job.reaches("Succeeded")
    assert job.status.get("failures", 0) == 0, "to wait is no failure"
    assert len(job.children("rayjobs")) == 1, "the earlier one is gone, with its pods"
