"""spec.runPolicy.progressDeadlineSeconds."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from scenarios import (
    Scenario,
    Step,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    running,
    succeed,
    wait,
)
from simulation import SETTINGS, World, make_job

from dreambooth_api.status import Phase, TrainerPhase
from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.decide import decide


def report(step: int) -> Step:
    def step_of(world: World) -> None:
        world.report(TrainerPhase.TRAIN, step=step, steps=10)

    return step_of


SCENARIOS = {
    "a trainer that never reports": Scenario(
        [running, wait(1800), collect, wait(11), running, report(1), wait(1799), succeed],
        Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "a trainer that stops reporting": Scenario(
        [running, wait(1000), report(1), wait(1799), report(2), wait(1800), collect],
        Phase.FAILED, "BackoffLimitExceeded", 1, {"backoffLimit": 0},
    ),
    "another limit": Scenario(
        [running, wait(300), collect], Phase.FAILED, "BackoffLimitExceeded", 1,
        {"backoffLimit": 0, "progressDeadlineSeconds": 300},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def hung_world(*steps: Step) -> World:
    world = World(make_job())
    world.reconcile()
    for step in (running, *steps, wait(1800)):
        step(world)
        world.reconcile()
    assert world.status.last_failure
    assert world.status.last_failure.reason == "ProgressDeadlineExceeded"
    return world


def test_message_contains_the_last_report() -> None:
    message = hung_world(report(1)).status.message
    assert "has not reported progress for 1800 s" in message
    assert "Its last report, of phase Train, arrived at 2026-11-24T06:00:00Z." in message


def test_message_of_a_trainer_that_never_reported_names_the_endpoint() -> None:
    assert "check that its pods reach the operator" in hung_world().status.message


def test_time_before_the_operator_received_reports_does_not_count() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    world.advance(4000)
    snapshot = world.observe()
    observed = dataclasses.replace(snapshot.observed, reports_since=world.now - timedelta(seconds=10))
    decision = decide(snapshot.job, snapshot.resolution, observed, snapshot.now, SETTINGS)
    assert not [action for action in decision.actions if isinstance(action, WriteStatus)]
    assert decision.requeue_after_seconds == 1790
