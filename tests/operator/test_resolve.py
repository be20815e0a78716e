"""Resolution of jobs against their runtime: defaults and bounds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
from pydantic.alias_generators import to_snake
from scenarios import running
from simulation import World, job_with

from dreambooth_api.defaulting import with_defaults
from dreambooth_api.job import JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Phase
from dreambooth_operator.controller.observed import Job, Runtime
from dreambooth_operator.controller.resolve import Accepted, ResolutionError, ResolvedJob, resolve, run_policy


def read_spec(spec: dict[str, Any]) -> JobSpec:
    read = job_with(spec).spec
    assert read
    return read


def test_runtime_defaults_apply_only_to_unset_fields() -> None:
    defaults = {
        "steps": 7, "learningRate": 0.5, "resolution": 64, "precision": "fp32", "numClassImages": 9,
        "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 61, "queueName": "gpus", "priorityClassName": "low",
        "workloadPriorityClassName": "batch",
    }  # fmt: skip
    runtime = RuntimeSpec.model_validate({"image": "t:1", "defaults": defaults})
    spec = with_defaults(read_spec({}), runtime)
    found = {**dict(spec.training), **dict(spec.prior_preservation), **dict(spec.run_policy)}
    assert {name: found[to_snake(name)] for name in defaults} == defaults
    own = with_defaults(read_spec({"priorPreservation": {"numClassImages": 5}}), runtime)
    assert own.prior_preservation.num_class_images == 5
    without = with_defaults(read_spec({"priorPreservation": {"mode": "Prediction"}}), runtime)
    assert without.prior_preservation.num_class_images is None, "it does not apply to this mode"
    for filled in (own, without):
        assert type(filled).model_validate(filled.model_dump(by_alias=True)) == filled, "no field is misnamed"


BOUNDED = {
    "image": "trainer:1",
    "storage": {"claimName": "work"},
    "pods": {"worker": {"gpu": 2}},
    "allowedNamespaces": ["team"],
    "bounds": {"maxWorkers": 4, "maxGpus": 4, "maxSteps": 1000, "maxActiveDeadlineSeconds": 600, "images": ["ok/"]},
}
EXCEEDING = {
    "too many steps": (
        {"training": {"steps": 5000}},
        "spec.training.steps: 5000 exceeds 1000, the limit set by DreamBoothRuntime 'default'; set 1000 or less",
    ),
    "too many workers": ({"cluster": {"workers": 9}}, "spec.cluster.workers: 9 exceeds 4"),
    "too many GPUs": ({"cluster": {"workers": 3}}, "3 workers with 2 GPUs each need 6 GPUs, which exceeds 4"),
    "a custom image": ({"cluster": {"image": "mine"}}, "spec.cluster.image: 'mine' is not allowed"),
    "another model": ({"model": {"id": "big/one"}}, "spec.model.id: 'big/one' is not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", EXCEEDING)
def test_job_that_exceeds_a_bound_is_rejected(case: str) -> None:
    spec, sentence = EXCEEDING[case]
    job = job_with({"runPolicy": {"activeDeadlineSeconds": 60}, **spec})
    found = resolve(job, Runtime("b", RuntimeSpec.model_validate(BOUNDED)), [])
    assert isinstance(found, ResolutionError)
    assert sentence in found.message


def test_all_exceeded_bounds_are_reported_at_once() -> None:
    job = job_with({"training": {"steps": 5000}, "cluster": {"workers": 9, "image": "mine"}})
    found = resolve(job, Runtime("b", RuntimeSpec.model_validate(BOUNDED)), [])
    assert isinstance(found, ResolutionError)
    assert found.message.count(";") >= 7, found.message
    assert found.reason == "OutOfBounds"


def test_runtime_is_restricted_to_its_namespaces() -> None:
    runtime = Runtime("b", RuntimeSpec.model_validate({**BOUNDED, "allowedNamespaces": ["other"]}))
    found = resolve(job_with({}), runtime, [])
    assert isinstance(found, ResolutionError)
    assert found.message == "DreamBoothRuntime 'default' does not allow namespace 'team'; allowed namespaces: other"


def test_job_without_a_volume_is_rejected_with_a_remedy() -> None:
    found = resolve(job_with({}), Runtime("b", RuntimeSpec(image="t:1")), [])
    assert isinstance(found, ResolutionError)
    assert "set pvc: {claimName: ...}" in found.message


STARTED_BY = Runtime(
    "default", RuntimeSpec.model_validate({**BOUNDED, "defaults": {"queueName": "gpus"}}), uid="r", generation=3
)


def running_job() -> Job:
    """A job that runs, and whose RayJob is recorded."""
    world = World(job_with({"runPolicy": {"backoffLimit": 5}}), dataclasses.replace(STARTED_BY))
    world.reconcile()
    running(world)
    world.reconcile()
    assert world.job
    return world.job


def with_status(job: Job, **fields: object) -> Job:
    return dataclasses.replace(job, status=job.status.model_copy(update=fields))


def test_running_job_is_not_resolved_again() -> None:
    job = running_job()
    found = resolve(job, STARTED_BY, [])
    assert isinstance(found, Accepted)
    full = resolve(with_status(job, ray_job_uid=None), STARTED_BY, [])
    assert isinstance(full, ResolvedJob)
    assert found.run_policy == full.spec.run_policy == run_policy(job, found)
    assert (found.run_policy.queue_name, found.run_policy.backoff_limit) == ("gpus", 5)
    assert isinstance(resolve(with_status(job, phase=Phase.SUCCEEDED), STARTED_BY, []), Accepted)


CHANGES: dict[str, tuple[Callable[[Job], Job], Runtime | None]] = {
    "the job": (lambda job: dataclasses.replace(job, generation=2), STARTED_BY),
    "the runtime": (lambda job: job, dataclasses.replace(STARTED_BY, generation=4)),
    "another runtime of that name": (lambda job: job, dataclasses.replace(STARTED_BY, uid="other")),
    "no runtime": (lambda job: job, None),
    "not valid any more": (lambda job: dataclasses.replace(job, spec=None), STARTED_BY),
    "not accepted": (lambda job: with_status(job, conditions=[]), STARTED_BY),
    "without a RayJob": (lambda job: with_status(job, ray_job_uid=None), STARTED_BY),
    "between attempts": (lambda job: with_status(job, phase=Phase.RETRYING), STARTED_BY),
    "never started": (lambda job: with_status(job, started_with=None), STARTED_BY),
}


@pytest.mark.parametrize("case", CHANGES)
def test_job_is_resolved_again_if_anything_has_changed(case: str) -> None:
    change, runtime = CHANGES[case]
    assert not isinstance(resolve(change(running_job()), runtime, []), Accepted)
