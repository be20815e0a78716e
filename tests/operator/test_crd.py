"""The CRDs as the API server and its users see them: what is refused, with which sentence, and what reads well."""

import copy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, ProcessError

from dreambooth_api.job import JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.resources import JOBS, RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
LEAST = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "my-dog"},
    "spec": {
        "subject": {"images": {"configMap": {"name": "photos"}}, "class": "dog"},
        "output": {"uri": "s3://models/dog"},
    },
}
REFUSED = {
    "an unknown field": ("spec.training.stpes", 5, 'unknown field "spec.training.stpes"'),
    "steps below one": ("spec.training.steps", 0, "should be greater than or equal to 1"),
    "an unknown method": ("spec.training.method", "Lora", 'supported values: "Full", "LoRA"'),
    "two sources of images": ("spec.subject.images.uri", "s3://b/x", "set exactly one of uri, pvc, configMap, secret"),
    "no source of images": ("spec.subject.images", {}, "set exactly one of uri, pvc, configMap, secret"),
    "images on a laptop": (
        "spec.subject.images",
        {"uri": "photos/dog"},
        "for local images, run kubectl create configmap NAME --from-file=FOLDER and set configMap: {name: NAME}",
    ),
    "a prompt without the identifier": (
        "spec.subject.instancePrompt", "a dog", "as a separate word, for example 'a sks dog'",
    ),
    "a prompt with identifier auto": (
        "spec.subject",
        {"images": {"configMap": {"name": "p"}}, "class": "dog", "identifier": "auto", "instancePrompt": "a dog"},
        "replace auto with, for example, identifier: sks",
    ),
    "a caption without the identifier": ("spec.subject.captions", {"1.png": "a dog"}, "each caption must contain"),
    "a warm-up longer than the training": (
        "spec.training", {"steps": 10, "warmupSteps": 20}, "decrease warmupSteps or increase steps",
    ),
    "a checkpoint that is never made": (
        "spec.training", {"steps": 10, "checkpointEverySteps": 20}, "or no checkpoint is saved: decrease it",
    ),
    "thresholds without an evaluation": (
        "spec.evaluation", {"enabled": False, "thresholds": {"dino": 0.6}}, "thresholds require scores",
    ),
    "two outputs": ("spec.output.pvc", {"claimName": "models"}, "set only one of uri and pvc"),
    "an output on a laptop": ("spec.output.uri", "out/dog", "for a volume, set pvc: {claimName: ...}"),
    "elastic bounds swapped": (
        "spec.cluster.elastic", {"minWorkers": 4, "maxWorkers": 2}, "maxWorkers must not be less than minWorkers",
    ),
    "a name that is no label": ("metadata.name", "my.dog", "letters, digits and hyphens, for example my-dog"),
    "a control character in a prompt": ("spec.priorPreservation.classPrompt", "a\ndog", "should match"),
    "no class": ("spec.subject", {"images": {"uri": "s3://b/x"}}, "spec.subject.class: Required value"),
}  # fmt: skip


def with_value(path: str, value: object) -> dict[str, Any]:
    job = copy.deepcopy(LEAST)
    *parents, last = path.split(".")
    node: Any = job
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return job


@pytest.mark.parametrize("case", REFUSED)
def test_a_bad_job_is_refused_with_a_sentence(plane: ControlPlane, case: str) -> None:
    path, value, sentence = REFUSED[case]
    with pytest.raises(ProcessError) as refusal:
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(with_value(path, value)))
    assert sentence in str(refusal.value)


def test_ten_lines_are_enough_and_the_server_fills_in_the_rest(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(LEAST))
    spec = plane.get("dreamboothjob", "my-dog", "-n", namespace)["spec"]
    assert spec["training"]["method"] == "Full"
    assert spec["runPolicy"]["backoffLimit"] == 3
    assert "elastic" not in spec["cluster"]
    assert "steps" not in spec["training"], "what depends on the base model stays open"


SUBJECT = {"images": {"uri": "s3://b/dog"}, "class": "dog"}
SAME_JOBS: list[dict[str, Any]] = [
    {},
    {"training": {}},
    {"training": {"deepspeed": {"stage": "2"}, "lora": {"rank": 4}, "textEncoder": {"train": True}}},
    {"priorPreservation": {"enabled": False, "sampler": {"steps": 5}}},
    {"evaluation": {"thresholds": {"dino": 0.5}, "encoders": {"clip": "a/b"}}},
    {"output": {"pvc": {"claimName": "models"}}},
    {"cluster": {"workers": 2, "resources": {"gpu": 2}}},
    {"cluster": {"elastic": {"minWorkers": 1, "maxWorkers": 2}, "tolerations": [{"key": "a"}]}},
    {"runPolicy": {"suspend": True}, "runtimeRef": {"name": "a"}, "model": {"id": "a/b"}},
    {"model": {}},
]
SAME_RUNTIMES: list[dict[str, Any]] = [
    {},
    {"pods": {}},
    {"pods": {"worker": {}}},
    {"pods": {"worker": {"cpu": "8"}}},
    {"pods": {"worker": {"memory": "1Gi"}}},
    {"pods": {"worker": {"gpu": 0}}},
    {"pods": {"worker": {"cpu": "1", "memory": "1Gi"}}},
    {"pods": {"head": {}}},
    {"pods": {"head": {"cpu": "1"}}},
    {"pods": {"head": {"memory": "1Gi"}, "sharedMemory": "1Gi"}},
    {"model": {}},
    {"model": {"revision": "main"}},
    {"storage": {"claimName": "a"}, "defaults": {"steps": 5}, "bounds": {"maxGpus": 0}},
]


async def stored(api: Api, kind: str, spec: dict[str, Any]) -> dict[str, Any]:
    """The spec as the API server keeps it, with its defaults."""
    resource = JOBS if kind == "DreamBoothJob" else RUNTIMES
    obj = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": kind, "metadata": {"name": "same"}, "spec": spec}
    path = resource.path("default" if resource is JOBS else "")
    return (await api.request("POST", path, query={"dryRun": "All", "fieldValidation": "Strict"}, body=obj))["spec"]


@pytest.mark.parametrize("part", SAME_JOBS, ids=str)
async def test_the_server_and_python_fill_in_the_same_for_a_job(api: Api, part: dict[str, Any]) -> None:
    spec = {"subject": SUBJECT, **part}
    kept = await stored(api, "DreamBoothJob", spec)
    assert JobSpec.model_validate(kept) == JobSpec.model_validate(spec)
    assert kept == await stored(api, "DreamBoothJob", kept)


@pytest.mark.parametrize("part", SAME_RUNTIMES, ids=str)
async def test_the_server_and_python_fill_in_the_same_for_a_runtime(api: Api, part: dict[str, Any]) -> None:
    spec = {"image": "trainer:1", **part}
    kept = await stored(api, "DreamBoothRuntime", spec)
    ours = RuntimeSpec.model_validate(spec)
    assert RuntimeSpec.model_validate(kept) == ours
    # What nobody reads through the model (columns, other clients) has the same values as well.
    assert kept["pods"]["worker"] == ours.pods.worker.model_dump(by_alias=True)
    assert kept["pods"]["head"] == ours.pods.head.model_dump(by_alias=True)


def test_a_worker_has_a_gpu_unless_the_runtime_writes_none() -> None:
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"worker": {"cpu": "8"}}}).pods.worker.gpu == 1
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"worker": {"gpu": 0}}}).pods.worker.gpu == 0
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"head": {"cpu": "1"}}}).pods.head.gpu == 0


def test_a_started_job_takes_a_new_run_policy_and_nothing_else(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(LEAST))
    change = ("patch", "dbj", "my-dog", "-n", namespace, "--type=merge", "-p")
    plane.kubectl(*change, '{"spec": {"training": {"steps": 7}}}')
    plane.kubectl(*change, '{"status": {"attempts": 1}}', "--subresource=status")
    plane.kubectl(*change, '{"spec": {"runPolicy": {"suspend": true}}}')
    for spec in ('{"training": {"steps": 8}}', '{"subject": {"class": "cat"}}', '{"model": {"id": "a/b"}}'):
        with pytest.raises(ProcessError, match="is immutable once the job has started: create another job"):
            plane.kubectl(*change, f'{{"spec": {spec}}}')


def test_a_job_does_not_write_its_own_status(plane: ControlPlane, namespace: str) -> None:
    job = {**LEAST, "status": {"phase": "Succeeded"}}
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(job))
    assert "status" not in plane.get("dbj", "my-dog", "-n", namespace)


def test_every_field_is_explained(plane: ControlPlane) -> None:
    text = plane.kubectl("explain", "dbj.spec.training")
    assert "Number of optimizer steps. Defaults to 1000, as in the paper" in text
    assert "enum: Full, LoRA" in text
    for crd in ("dreamboothjobs.dreambooth.dev", "dreamboothruntimes.dreambooth.dev"):
        schema = plane.get("crd", crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert list(_unexplained(schema["properties"]["spec"], "spec")) == []


def test_columns_show_the_progress_of_a_job(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(LEAST))
    status = (
        '{"status": {"phase": "Running", "message": "The trainer is training the model.",'
        ' "training": {"progress": "120/1000", "loss": 0.0423, "eta": "5m"},'
        ' "scores": {"dino": "0.712", "clipT": "0.305"}}}'
    )
    plane.kubectl("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
    heading, row = plane.kubectl("get", "dbj", "-n", namespace).splitlines()
    assert heading.split() == ["NAME", "PHASE", "STEP", "LOSS", "ETA", "DINO", "CLIP-T", "AGE", "MESSAGE"]
    assert row.split()[:7] == ["my-dog", "Running", "120/1000", "0.0423", "5m", "0.712", "0.305"]
    assert row.endswith("The trainer is training the model.")
    wide = plane.kubectl("get", "dbj", "-n", namespace, "-o", "wide").splitlines()[0].split()
    assert wide[-4:] == ["ATTEMPTS", "RAYJOB", "OUTPUT", "MESSAGE"]


def test_generated_files_are_as_generated(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreambooth_operator.crd", "--root", str(tmp_path)]
    subprocess.run(command, check=True)
    assert subprocess.run([*command[:3], "--check", "--root", str(ROOT)], check=False).returncode == 0
    stray = tmp_path / "manifests" / "crd" / "stray.yaml"
    stray.write_text("")
    assert subprocess.run([*command, "--check"], check=False).returncode == 1


def _unexplained(node: dict[str, Any], path: str) -> Any:
    if not node.get("description"):
        yield path
    for name, child in node.get("properties", {}).items():
        yield from _unexplained(child, f"{path}.{name}")
