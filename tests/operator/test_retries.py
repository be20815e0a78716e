"""spec.runPolicy.backoffLimit."""

from __future__ import annotations

import pytest
from scenarios import (
    OUT_OF_MEMORY,
    Scenario,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    conditions,
    fail,
    messages,
    report_bad_images,
    report_out_of_memory,
    running,
    succeed,
    wait,
)
from simulation import World, make_job

from dreambooth_api.status import Phase, TrainerPhase

SCENARIOS = {
    "a retry succeeds": Scenario(
        [running, fail, wait(11), collect, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "all retries fail": Scenario(
        [running, fail, wait(11), collect, running, fail], Phase.FAILED, "BackoffLimitExceeded", 2, {"backoffLimit": 1},
    ),
    "the trainer reports a retryable failure after the last attempt": Scenario(
        [running, fail, report_out_of_memory], Phase.FAILED, "BackoffLimitExceeded", 1, {"backoffLimit": 0},
    ),
    "the trainer reports a permanent failure after the last attempt": Scenario(
        [running, fail, report_bad_images], Phase.FAILED, "BadImages", 1, {"backoffLimit": 0},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_late_report_of_a_failed_job_keeps_the_completion_time_and_completes_the_conditions() -> None:
    world = World(make_job(backoffLimit=0))
    world.reconcile()
    running(world)
    world.reconcile()
    fail(world)
    world.reconcile()
    completed = world.status.completion_time
    world.advance(30)
    world.report(TrainerPhase.EVALUATE, OUT_OF_MEMORY)
    world.reconcile()
    assert messages(world)["Failed"] == (
        "Attempt 1 failed with OutOfMemory: 32 GiB are not enough. "
        "No retries are left (spec.runPolicy.backoffLimit is 0, failed attempts: 1)."
    )
    assert world.status.completion_time == completed
    assert conditions(world)["Trained"] == ("True", "Done")
    assert "Published" not in conditions(world) or conditions(world)["Published"][0] != "True"
