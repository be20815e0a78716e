"""Disruptions of pods and full quotas do not use retries."""

from __future__ import annotations

import dataclasses

import pytest
from scenarios import collect, fail, lose_head, report_bad_images, report_out_of_memory, running
from simulation import SETTINGS, World, make_job
from test_pods import pod

from dreambooth_api.status import Failure, Phase
from dreambooth_operator.controller.actions import Create
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.failures import QUOTA_EXCEEDED, rejected_child

DISRUPTED = pod(
    {
        "conditions": [
            {"type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI", "message": "Eviction API"}
        ]
    }
)
DISRUPTION = "Pod c-head on node n1 was disrupted: EvictionByEvictionAPI: Eviction API."


def disrupted_world() -> World:
    """A running job without retries, whose head pod was evicted and is gone."""
    world = World(make_job(backoffLimit=0))
    world.reconcile()
    running(world)
    world.reconcile()
    world.pods = [DISRUPTED]
    world.reconcile()
    assert world.status.disruption == DISRUPTION
    assert world.events.count("PodDisrupted") == 1
    world.pods = []
    return world


@pytest.mark.parametrize("end", [lose_head, fail])
def test_disruption_uses_no_retry(end: object) -> None:
    world = disrupted_world()
    assert callable(end)
    end(world)
    world.reconcile()
    assert world.status.phase is Phase.RETRYING
    assert world.status.failures == 0
    assert world.status.last_failure
    assert DISRUPTION in world.status.last_failure.message
    assert "does not count toward spec.runPolicy.backoffLimit" in world.status.last_failure.message
    world.collect()
    world.ray_jobs.clear()
    world.advance(11)
    world.reconcile()
    assert world.status.attempts == 2
    assert world.status.disruption is None, "the next attempt has its own disruptions"
    running(world)
    world.reconcile()
    fail(world)
    world.reconcile()
    assert world.status.phase is Phase.FAILED, "a failure without a disruption counts"


def test_permanent_failure_of_a_disrupted_attempt_ends_the_job() -> None:
    world = disrupted_world()
    report_bad_images(world)
    fail(world)
    world.reconcile()
    assert world.status.phase is Phase.FAILED
    assert world.status.last_failure
    assert world.status.last_failure.reason == "BadImages"


def test_retryable_failure_that_the_trainer_reports_is_explained_by_the_disruption() -> None:
    world = disrupted_world()
    report_out_of_memory(world)
    fail(world)
    world.reconcile()
    assert world.status.phase is Phase.RETRYING
    assert world.status.failures == 0


def test_full_quota_waits_with_backoff_and_uses_no_retry() -> None:
    error = 'rayjobs.ray.io "x" is forbidden: exceeded quota: jobs, used: 4, limited: 4'
    failure = rejected_child("RayJob", 403, error)
    assert failure.reason == QUOTA_EXCEEDED
    world = World(make_job(backoffLimit=0))
    delays_seconds: list[float] = []
    for attempt in range(8):
        reject(world, rejected_child("RayJob", 403, error.replace('"x"', f'"x-{attempt}"')))
        assert world.status.phase is Phase.RETRYING
        assert "exceeded quota: jobs" in world.status.message
        assert world.status.next_attempt_time
        delays_seconds.append((world.status.next_attempt_time - world.now).total_seconds())
        world.advance(delays_seconds[-1])
    assert world.status.failures == 0
    assert [reason for reason, _ in sorted(world.messages)] == ["AttemptFailed", "AttemptStarted"], (
        "counts grow instead"
    )
    assert delays_seconds == [10, 10, 20, 40, 80, 160, 320, 360]
    world.reconcile()
    running(world)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    collect(world)


def reject(world: World, failure: Failure) -> None:
    """Start the next attempt, and let the API server reject its RayJob."""
    for _ in range(3):
        snapshot = world.observe()
        observed = dataclasses.replace(snapshot.observed, create_failure=failure)
        decision = decide(snapshot.job, snapshot.resolution, observed, snapshot.now, SETTINGS)
        if not decision.actions:
            return
        for number, action in enumerate(decision.actions):
            if not isinstance(action, Create):
                world.act(snapshot, action, first=number == 0)


def test_other_refusals_use_retries() -> None:
    failure = rejected_child("RayJob", 403, "admission webhook denied the request")
    assert failure.reason == "RayJobRefused"
    world = World(make_job(backoffLimit=0))
    reject(world, failure)
    assert world.status.phase is Phase.FAILED
