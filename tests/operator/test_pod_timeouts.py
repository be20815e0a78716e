"""Time limits for pods: pods that do not become ready, and a head pod that is lost."""

from __future__ import annotations

import dataclasses

import pytest
from scenarios import (
    OUT_OF_MEMORY,
    Scenario,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    conditions,
    lose_head,
    report_bad_images,
    report_out_of_memory,
    running,
    succeed,
    wait,
)
from simulation import SETTINGS, World, make_job

from dreambooth_api.status import Phase

SCENARIOS = {
    "the head pod is lost": Scenario(
        [running, lose_head, wait(11), collect, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "pods that do not become ready do not count as a retry": Scenario(
        [wait(400), collect, wait(11), running, wait(1000), succeed],
        Phase.SUCCEEDED, "Succeeded", 2, {"backoffLimit": 0},
    ),
    "the trainer reports a permanent failure after its head pod was lost": Scenario(
        [running, lose_head, report_bad_images, collect], Phase.FAILED, "BadImages", 1,
    ),
    "the trainer reports a retryable failure after its head pod was lost": Scenario(
        [running, lose_head, report_out_of_memory, wait(11), collect, running, succeed],
        Phase.SUCCEEDED, "Succeeded", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_timeouts_of_jobs_that_wait_for_each_other_differ() -> None:
    timeouts_seconds = set()
    for uid in ("a", "b", "c"):
        world = World(dataclasses.replace(make_job(), uid=uid))
        world.reconcile()
        left_seconds = world.observe().decide().requeue_after_seconds
        assert left_seconds
        assert SETTINGS.pods_ready_seconds <= left_seconds < 2 * SETTINGS.pods_ready_seconds
        world.advance(left_seconds)
        world.reconcile()
        assert world.status.phase is Phase.RETRYING
        assert world.status.last_failure
        assert world.status.last_failure.reason == "PodsNotReady"
        timeouts_seconds.add(left_seconds)
    assert len(timeouts_seconds) == 3


def test_head_pod_that_was_lost_before_the_operator_saw_it_is_a_failed_attempt() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    lose_head(world)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING, "a cache may lag behind: the head pod gets its grace period"
    assert world.status.head_pod is None
    world.advance(SETTINGS.head_grace_seconds)
    world.reconcile()
    assert world.status.phase is Phase.RETRYING
    assert world.status.last_failure
    assert world.status.last_failure.reason == "HeadLost"
    assert "The head pod was not ready for" in world.status.last_failure.message


def test_failure_that_is_reported_late_replaces_the_assumed_one() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    lose_head(world)
    world.reconcile()
    assert world.status.last_failure
    assert world.status.last_failure.reason == "HeadLost"
    failures, due = world.status.failures, world.status.next_attempt_time
    report_out_of_memory(world)
    world.reconcile()
    assert world.status.last_failure == OUT_OF_MEMORY
    assert conditions(world)["ClusterReady"] == ("False", "OutOfMemory")
    assert (world.status.failures, world.status.next_attempt_time) == (failures, due), "one failure is counted"
    assert world.events[-1] == "AttemptFailed"
