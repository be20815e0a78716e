"""spec.runPolicy.startDeadlineSeconds."""

from __future__ import annotations

import pytest
from scenarios import (
    Scenario,
    admit,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    preempt,
    resume,
    running,
    succeed,
    suspend,
    wait,
)
from simulation import World, make_job

from dreambooth_api.status import Phase

EXCEEDED = "StartDeadlineExceeded"
SCENARIOS = {
    "pods are not ready": Scenario([wait(60), collect], Phase.FAILED, EXCEEDED, 1, {"startDeadlineSeconds": 60}),
    "the queue does not admit": Scenario(
        [wait(60), collect], Phase.FAILED, EXCEEDED, 1, {"startDeadlineSeconds": 60, "queueName": "gpus"},
    ),
    "the time in the queue and for pods is one time": Scenario(
        [wait(40), admit, wait(40), collect],
        Phase.FAILED, EXCEEDED, 1, {"startDeadlineSeconds": 60, "queueName": "gpus"},
    ),
    "pods are deleted and created again while the job waits": Scenario(
        [wait(400), collect, wait(11), wait(400), collect],
        Phase.FAILED, EXCEEDED, 2, {"startDeadlineSeconds": 800},
    ),
    "the trainer runs in time": Scenario(
        [wait(50), running, wait(1000), succeed], Phase.SUCCEEDED, "Succeeded", 1, {"startDeadlineSeconds": 60},
    ),
    "the time starts again after a preemption": Scenario(
        [wait(50), admit, running, wait(9), preempt, wait(50), admit, running, succeed],
        Phase.SUCCEEDED, "Succeeded", 1, {"startDeadlineSeconds": 60, "queueName": "gpus"},
    ),
    "suspended time does not count": Scenario(
        [wait(50), suspend, collect, wait(100), resume, wait(50), running, succeed],
        Phase.SUCCEEDED, "Succeeded", 2, {"startDeadlineSeconds": 60},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_message_gives_the_limit_and_what_the_job_waited_for() -> None:
    world = World(make_job(startDeadlineSeconds=10, queueName="gpus"))
    world.reconcile()
    requeue = world.observe().decide().requeue_after_seconds
    world.advance(10)
    world.reconcile()
    assert world.status.message == (
        "The trainer did not run within 10 s, the limit set by spec.runPolicy.startDeadlineSeconds. "
        "Last state: Waiting for admission by queue gpus."
    )
    assert requeue == 10
