"""spec.runPolicy.queueName: admission and preemption by Kueue."""

from __future__ import annotations

import pytest
from scenarios import (
    Scenario,
    admit,
    check_scenario,
    check_scenario_with_interruptions,
    preempt,
    running,
    succeed,
    wait,
)
from simulation import RUNTIME, SETTINGS, make_job

from dreambooth_api.status import Phase
from dreambooth_operator.controller.children.rayjob import build_ray_job
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.resources import Json

SCENARIOS = {
    "a queue admits, preempts and admits the job": Scenario(
        [wait(1000), admit, running, preempt, wait(1000), admit, running, succeed],
        Phase.SUCCEEDED, "Succeeded", 1, {"queueName": "gpus"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def ray_job(**policy: object) -> Json:
    job = make_job(**policy)
    resolved = resolve(job, RUNTIME, [])
    assert isinstance(resolved, ResolvedJob)
    return build_ray_job(job, 1, resolved, SETTINGS)


def test_ray_job_of_a_queue_has_its_label_and_starts_suspended() -> None:
    queued = ray_job(queueName="gpus")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert queued["spec"]["suspend"] is True
    assert ray_job()["spec"]["suspend"] is False
