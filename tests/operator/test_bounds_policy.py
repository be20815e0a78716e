"""The ValidatingAdmissionPolicy reports bounds when a job is applied, as the operator does before it starts one."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ControlPlane, ProcessError
from operatorprocess import until
from simulation import job_with
from test_bounds import ALLOWED as OPERATOR_ALLOWS
from test_bounds import EXCEEDING, STILL_DENIED
from test_bounds import RUNTIME as BOUNDED

from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.controller.observed import Runtime
from dreambooth_operator.controller.resolve import ResolutionError, resolve
from dreambooth_operator.crd.admission import NAME

POLICY = Path(__file__).resolve().parents[2] / "manifests" / "admission" / "bounds.yaml"
WIDE: dict[str, Any] = {
    **BOUNDED,
    "allowedNamespaces": [],
    "bounds": {
        "maxSteps": 100, "maxResolution": 256, "maxGpus": 4, "maxCpu": "8", "maxMemory": "1Gi",
        "images": ["ghcr.io/corp/", "quay.io"], "models": ["org/other", "org/model@def"], "encoders": ["org/encoder"],
        "nodeSelectorKeys": ["zone"], "tolerationKeys": ["spot"], "priorityClassNames": ["high"],
    },
    "defaults": {"steps": 200, "resolution": 512, "numClassImages": 9000, "priorityClassName": "low"},
}  # fmt: skip
# What bounds and defaults of a runtime allow.
ALLOWED: dict[str, dict[str, Any]] = {
    "nothing": {},
    "its own image": {"cluster": {"image": "ghcr.io/corp/trainer:1"}},
    "an image below a repository": {"cluster": {"image": "ghcr.io/corp/other@sha256:0"}},
    "an image of a registry": {"cluster": {"image": "quay.io/a/b:2"}},
    "the steps of the runtime": {"training": {"steps": 200}},
    "the resolution of the runtime": {"training": {"resolution": 512}},
    "the class images of the runtime": {"priorPreservation": {"numClassImages": 9000}},
    "no class images": {"priorPreservation": {"mode": "Prediction"}},
    "its own model": {"model": {"id": "org/model"}},
    "its own revision": {"model": {"id": "org/model", "revision": "abc"}},
    "another model": {"model": {"id": "org/other"}},
    "its own super-resolution model": {"model": {"id": "org/model", "superResolution": {"id": "org/second"}}},
    "its revision": {"model": {"id": "org/model", "superResolution": {"id": "org/second", "revision": "def"}}},
    "another super-resolution model": {"model": {"id": "org/model", "superResolution": {"id": "org/other"}}},
    "another revision": {"model": {"id": "org/model", "revision": "def"}},
    "encoders": {"evaluation": {"encoders": {"dino": "org/encoder", "clip": "openai/clip-vit-base-patch32"}}},
    "labels": {"cluster": {"nodeSelector": {"pool": "dreambooth", "zone": "b"}}},
    "tolerations": {"cluster": {"tolerations": [{"key": "gpu", "operator": "Exists"}, {"key": "spot", "value": "x"}]}},
    "a priority": {"runPolicy": {"priorityClassName": "high"}},
    "more resources": {"cluster": {"resources": {"cpu": "8", "memory": "16Gi", "gpu": 2}, "workers": 2}},
}  # fmt: skip
# What the wide bounds reject.
BEYOND: dict[str, dict[str, Any]] = {
    "the default branch of a pinned model": {"model": {"id": "org/model", "revision": "main"}},
    "the default branch of a pinned super-resolution model": {
        "model": {"id": "org/model", "superResolution": {"id": "org/second", "revision": "main"}},
    },
    "a super-resolution model beside an allowed model": {
        "model": {"id": "org/other", "superResolution": {"id": "evil/model"}},
    },
    "a revision of another model": {"model": {"id": "org/other", "revision": "x"}},
    "a similar repository": {"cluster": {"image": "ghcr.io/corp.example/trainer"}},
    "a port of a registry": {"cluster": {"image": "quay.io:5000/a"}},
    "too many GPUs": {"cluster": {"resources": {"gpu": 3}, "workers": 2}},
    "too little CPU": {"cluster": {"resources": {"cpu": "1m"}}},
    "a changed label": {"cluster": {"nodeSelector": {"pool": "other"}}},
}
TWO_SUBJECTS = {
    "subject": None,
    "subjects": [{"images": {"uri": "s3://b/x"}, "class": "dog", "identifier": i} for i in ("sks", "zwx")],
}
PREDICTED = {"training": {"method": "LoRA", "hyperNetwork": {"id": "builtin:sprites"}}}
NO_CLASS_IMAGES = {"priorPreservation": {"mode": "None"}}
# Bounds and defaults of a runtime, fields of a job, and the message, which is empty if the job is accepted.
OMITTED: dict[str, tuple[dict[str, int], dict[str, int], dict[str, Any], str]] = {
    "steps": ({"maxSteps": 999}, {}, {}, "training.steps: is not set and defaults to up to 1000"),
    "steps-within": ({"maxSteps": 1000}, {}, {}, ""),
    "steps-of-the-runtime": ({"maxSteps": 10}, {"steps": 2000}, {}, ""),
    "steps-of-subjects": (
        {"maxSteps": 1999}, {}, TWO_SUBJECTS, "training.steps: is not set and defaults to up to 2000",
    ),
    "steps-of-subjects-within": ({"maxSteps": 2000}, {}, TWO_SUBJECTS, ""),
    "steps-with-hyper-network": (
        {"maxSteps": 99}, {}, PREDICTED, "training.steps: is not set and defaults to up to 100,",
    ),
    "steps-with-hyper-network-within": ({"maxSteps": 100}, {}, PREDICTED, ""),
    "images": (
        {"maxClassImages": 999}, {}, {}, "priorPreservation.numClassImages: is not set and defaults to up to 1000",
    ),
    "images-of-the-runtime": ({"maxClassImages": 9}, {"numClassImages": 500}, {}, ""),
    "no-images": ({"maxClassImages": 9}, {}, NO_CLASS_IMAGES, ""),
    "no-images-by-method": ({"maxClassImages": 9}, {}, {"training": {"method": "TextualInversion"}}, ""),
    "no-images-with-hyper-network": ({"maxClassImages": 9}, {}, PREDICTED, ""),
    "images-with-hyper-network": (
        {"maxClassImages": 999}, {}, {**PREDICTED, "priorPreservation": {"mode": "Images"}},
        "priorPreservation.numClassImages: is not set and defaults to up to 1000",
    ),
    "no-steps-by-method": ({"maxSteps": 1}, {}, {"training": {"method": "None"}}, ""),
    "resolution": ({"maxResolution": 512}, {}, {}, "training.resolution: is not set and has a default that depends on"),
    "resolution-of-the-job": ({"maxResolution": 512}, {}, {"training": {"resolution": 512}}, ""),
    "resolution-of-the-runtime": ({"maxResolution": 512}, {"resolution": 1024}, {}, ""),
}  # fmt: skip


@pytest.fixture(scope="module")
def policy(plane: ControlPlane) -> Iterator[ControlPlane]:
    """The policy, removed afterwards, because other tests need jobs that exceed their bounds."""
    for name, spec in (("strict", BOUNDED), ("wide", WIDE)):
        kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": name}}
        plane.apply({**kind, "spec": spec})
    plane.kubectl("apply", "--server-side", "-f", str(POLICY))

    def is_enforced() -> bool:
        return "exceeds 8" in answer(plane, "default", "strict", {"cluster": {"workers": 9}})

    until("the policy is enforced", is_enforced)
    yield plane
    plane.kubectl("delete", "-f", str(POLICY))


@pytest.fixture(scope="module")
def team(plane: ControlPlane) -> str:
    """The namespace that the examples of bounds name."""
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    return "team"


def answer(plane: ControlPlane, namespace: str, runtime: str, spec: dict[str, Any]) -> str:
    """The error of the API server for a job; empty if it accepts the job."""
    job: dict[str, Any] = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "dog", "namespace": namespace},
        "spec": {
            "runtimeRef": {"name": runtime},
            "subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"},
            **copy.deepcopy(spec),
        },
    }
    try:
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=json.dumps(job))
    except ProcessError as error:
        return str(error)
    return ""


def operator_rejects(runtime: dict[str, Any], spec: dict[str, Any]) -> bool:
    found = resolve(job_with(spec), Runtime("default", RuntimeSpec.model_validate(runtime)), [])
    return isinstance(found, ResolutionError) and found.reason == "OutOfBounds"


def test_expressions_have_no_type_errors(policy: ControlPlane) -> None:
    def is_checked() -> bool:
        found = policy.get("validatingadmissionpolicy", NAME)
        return found.get("status", {}).get("observedGeneration") == found["metadata"]["generation"]

    until("the expressions are checked", is_checked)
    checked = policy.get("validatingadmissionpolicy", NAME)["status"]["typeChecking"]
    assert checked.get("expressionWarnings", []) == []


@pytest.mark.parametrize("path", EXCEEDING)
def test_job_that_exceeds_a_bound_is_not_accepted(policy: ControlPlane, namespace: str, path: str) -> None:
    assert operator_rejects(BOUNDED, EXCEEDING[path])
    refused = answer(policy, namespace, "strict", EXCEEDING[path])
    assert NAME in refused
    assert f"spec.{path.partition('[')[0].partition('{')[0].partition('.')[0]}" in refused
    assert "DreamBoothRuntime strict" in refused


@pytest.mark.parametrize("case", ALLOWED)
def test_what_a_runtime_allows_is_accepted(policy: ControlPlane, namespace: str, case: str) -> None:
    steps = {"training": {"steps": 50}, "priorPreservation": {"mode": "None"}}
    assert not operator_rejects(WIDE, {**steps, **ALLOWED[case]})
    assert answer(policy, namespace, "wide", ALLOWED[case]) == ""


@pytest.mark.parametrize("case", BEYOND)
def test_what_its_bounds_exclude_is_not_accepted(policy: ControlPlane, namespace: str, case: str) -> None:
    assert operator_rejects(WIDE, BEYOND[case])
    assert NAME in answer(policy, namespace, "wide", BEYOND[case])


@pytest.mark.parametrize("case", [*OPERATOR_ALLOWS, *STILL_DENIED])
def test_policy_agrees_with_the_operator(policy: ControlPlane, team: str, case: str) -> None:
    spec, bounds = {**OPERATOR_ALLOWS, **STILL_DENIED}[case]
    name = "case-" + "".join(character for character in case if character.isalnum()).lower()[:40]
    runtime = {**BOUNDED, "bounds": {**BOUNDED["bounds"], **bounds}}
    kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": name}}
    policy.apply({**kind, "spec": runtime})
    known = {"training": {"steps": 10**5}}
    until("the runtime is known", lambda: "training.steps" in answer(policy, team, name, known), 30)
    assert (NAME in answer(policy, team, name, spec)) == (case in STILL_DENIED)


@pytest.mark.parametrize("case", OMITTED)
def test_omitted_fields_are_judged_by_their_defaults(policy: ControlPlane, namespace: str, case: str) -> None:
    bounds, defaults, spec, message = OMITTED[case]
    runtime = {"image": "trainer:1", "storage": {"claimName": "work"}, "bounds": bounds, "defaults": defaults}
    assert operator_rejects(runtime, spec) == bool(message)
    kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": case}}
    policy.apply({**kind, "spec": runtime})
    excess = {"training": {"steps": 1, "resolution": 64}, "cluster": {"workers": 99}, **NO_CLASS_IMAGES}
    until("the runtime is known", lambda: "cluster.workers" in answer(policy, namespace, case, excess), 30)
    found = answer(policy, namespace, case, spec)
    assert (NAME in found) == bool(message), found
    assert message in found


def test_namespace_that_a_runtime_does_not_allow(policy: ControlPlane, namespace: str) -> None:
    spec = {**BOUNDED, "allowedNamespaces": ["other"]}
    kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": "closed"}}
    policy.apply({**kind, "spec": spec})
    until("the runtime is known", lambda: "allowedNamespaces" in answer(policy, namespace, "closed", {}))


def applied(policy: ControlPlane, namespace: str, runtime: str, spec: dict[str, Any], **metadata: object) -> str:
    """A job that was accepted; its name."""
    job = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": runtime, "namespace": namespace, **metadata},
        "spec": {"runtimeRef": {"name": runtime}, "subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"}, **spec},
    }
    policy.apply(job)
    return runtime


def test_update_is_judged_by_what_it_changes(policy: ControlPlane, namespace: str) -> None:
    kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": "lowered"}}
    policy.apply({**kind, "spec": BOUNDED})
    spec = {
        "training": {"steps": 500}, "cluster": {"workers": 4}, "runPolicy": {"activeDeadlineSeconds": 600},
    }  # fmt: skip
    name = applied(policy, namespace, "lowered", spec, finalizers=["example.com/keep"])
    lower = {"maxSteps": 100, "maxWorkers": 2, "maxActiveDeadlineSeconds": 60, "maxClassImages": 10}
    policy.apply({**kind, "spec": {**BOUNDED, "bounds": lower}})
    until("the bound is known", lambda: answer(policy, namespace, "lowered", {"training": {"steps": 500}}))
    change = ("patch", "dbj", name, "-n", namespace, "--type=merge", "-p")
    policy.kubectl(*change, '{"status":{"message":"x"}}', "--subresource=status")
    policy.kubectl(*change, '{"metadata":{"labels":{"a":"b"}}}')
    policy.kubectl(*change, '{"spec":{"training":{"seed":1}}}')
    policy.kubectl(*change, '{"spec":{"runPolicy":{"suspend":true}}}')
    for changed, message in (
        ('{"training":{"steps":400}}', "steps: 400 exceeds 100"),
        ('{"cluster":{"workers":3}}', "workers: 3 exceeds 2"),
        ('{"runPolicy":{"activeDeadlineSeconds":61}}', "activeDeadlineSeconds: 61 exceeds 60"),
        ('{"priorPreservation":{"mode":"Images"}}', "numClassImages: is not set and defaults to up to 1000"),
        ('{"cluster":{"image":"evil"}}', "cluster.image: evil is not allowed"),
    ):
        with pytest.raises(ProcessError, match=message):
            policy.kubectl(*change, f'{{"spec":{changed}}}')
    with pytest.raises(ProcessError, match="steps: 500 exceeds 200"):
        policy.kubectl(*change, '{"spec":{"runtimeRef":{"name":"wide"}}}')
    policy.kubectl(*change, '{"spec":{"training":{"steps":100}}}')
    policy.kubectl(*change, '{"metadata":{"finalizers":null}}')


def test_running_job_keeps_what_exceeds_a_new_bound(policy: ControlPlane, namespace: str) -> None:
    spec = {**BOUNDED, "bounds": {}}
    kind = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothRuntime", "metadata": {"name": "tightened"}}
    policy.apply({**kind, "spec": spec})
    name = applied(policy, namespace, "tightened", {"runPolicy": {"activeDeadlineSeconds": 600}})
    policy.apply({**kind, "spec": {**spec, "bounds": {"maxSteps": 10, "maxActiveDeadlineSeconds": 60}}})
    until("the bound is known", lambda: "is not set" in answer(policy, namespace, "tightened", {}))
    change = ("patch", "dbj", name, "-n", namespace, "--type=merge", "-p")
    policy.kubectl(*change, '{"status":{"attempts":1}}', "--subresource=status")
    policy.kubectl(*change, '{"spec":{"runPolicy":{"suspend":true}}}')
    policy.kubectl(*change, '{"spec":{"runPolicy":{"backoffLimit":1}}}')
    with pytest.raises(ProcessError, match="activeDeadlineSeconds: 500 exceeds 60"):
        policy.kubectl(*change, '{"spec":{"runPolicy":{"activeDeadlineSeconds":500}}}')


def test_job_of_a_local_runtime_is_left_to_the_operator(policy: ControlPlane, namespace: str) -> None:
    reference = {"kind": "LocalDreamBoothRuntime", "name": "strict"}
    assert answer(policy, namespace, "strict", {"runtimeRef": reference, "cluster": {"workers": 9}}) == ""


def test_job_of_a_missing_runtime_is_left_to_the_operator(policy: ControlPlane, namespace: str) -> None:
    assert answer(policy, namespace, "missing", {"cluster": {"workers": 999}}) == ""
