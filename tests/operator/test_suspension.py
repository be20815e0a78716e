"""spec.runPolicy.suspend."""

from __future__ import annotations

import pytest
from scenarios import (
    BAD_IMAGES,
    Scenario,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    fail,
    report_out_of_memory,
    report_published,
    resume,
    running,
    succeed,
    suspend,
)
from simulation import World, make_job

from dreambooth_api.status import Phase

SCENARIOS = {
    "a running job is suspended and resumed": Scenario(
        [running, suspend, collect, resume, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "a job is created suspended": Scenario(
        [resume, running, succeed], Phase.SUCCEEDED, "Succeeded", 1, {"suspend": True},
    ),
    "a failure is reported during the suspension": Scenario(
        [running, suspend, report_out_of_memory, collect, resume, running, succeed, report_published],
        Phase.SUCCEEDED, "Succeeded", 2,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_failure_reported_during_a_suspension_does_not_fail_the_next_attempt() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    suspend(world)
    world.reconcile()
    world.report(failure=BAD_IMAGES)  # of attempt 1, which is suspended, not failed
    collect(world)
    world.reconcile()
    resume(world)
    world.reconcile()
    assert world.status.attempts == 2
    assert not world.report(failure=BAD_IMAGES, attempt=1)
    fail(world)
    world.reconcile()
    assert world.status.phase is Phase.RETRYING
