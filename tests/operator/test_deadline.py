"""spec.runPolicy.activeDeadlineSeconds."""

from __future__ import annotations

import pytest
from scenarios import (
    Scenario,
    admit,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    fail,
    report_out_of_memory,
    running,
    succeed,
    wait,
)

from dreambooth_api.status import Phase

SCENARIOS = {
    "the deadline passes": Scenario(
        [running, wait(61), collect], Phase.FAILED, "DeadlineExceeded", 1, {"activeDeadlineSeconds": 60},
    ),
    "the deadline counts all attempts": Scenario(
        [running, wait(40), fail, wait(11), collect, running, wait(25), collect],
        Phase.FAILED, "DeadlineExceeded", 2, {"activeDeadlineSeconds": 60},
    ),
    "the deadline excludes time in a queue": Scenario(
        [wait(1000), admit, running, wait(59), succeed],
        Phase.SUCCEEDED, "Succeeded", 1, {"queueName": "gpus", "activeDeadlineSeconds": 60},
    ),
    "the deadline excludes time in which pods are not ready": Scenario(
        [wait(100), running, wait(59), succeed], Phase.SUCCEEDED, "Succeeded", 1, {"activeDeadlineSeconds": 60},
    ),
    "the trainer reports a failure when it is stopped at the deadline": Scenario(
        [running, wait(61), report_out_of_memory, collect],
        Phase.FAILED, "DeadlineExceeded", 1, {"activeDeadlineSeconds": 60},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])
