"""Resolution of jobs against their runtime: defaults and bounds."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic.alias_generators import to_snake
from simulation import job_with

from dreambooth_api.defaulting import with_defaults
from dreambooth_api.job import JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.controller.observed import Runtime
from dreambooth_operator.controller.resolve import ResolutionError, resolve


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
    assert type(own).model_validate(own.model_dump(by_alias=True)) == own, "no field is misnamed"


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
