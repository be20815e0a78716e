"""The CRDs on the real API server: validation messages, defaults, descriptions and printer columns."""

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
from dreambooth_operator.resources import JOBS, LOCAL_RUNTIMES, RUNTIMES

ROOT = Path(__file__).resolve().parents[2]
MINIMAL = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "my-dog"},
    "spec": {
        "subject": {"images": {"configMap": {"name": "photos"}}, "class": "dog"},
        "output": {"uri": "s3://models/dog"},
    },
}
INVERSION = {"method": "TextualInversion"}
PIVOTAL = {"method": "PivotalTuning"}
NETWORK = {"method": "LoRA", "hyperNetwork": {"id": "org/network"}}
DOG = {"images": {"configMap": {"name": "photos"}}, "class": "dog"}
CAT = {**DOG, "class": "cat", "identifier": "ohwx"}

BEST = {
    **MINIMAL["spec"],
    "training": {"validation": {"prompts": ["a {} on the beach"], "everySteps": 10, "patience": 3}},
    "output": {"uri": "s3://models/dog", "select": "Best"},
}


def spec_of(subjects: list[dict[str, Any]], **more: object) -> dict[str, Any]:
    return {"subjects": subjects, "output": {"uri": "s3://models/pets"}, **more}


INVALID = {
    "an unknown field": ("spec.training.stpes", 5, 'unknown field "spec.training.stpes"'),
    "steps below one": ("spec.training.steps", 0, "should be greater than or equal to 1"),
    "an unknown method": ("spec.training.method", "Lora", 'supported values: "Full", "LoRA", "DoRA", "TextualInv'),
    "two sources of images": ("spec.subject.images.uri", "s3://b/x", "set exactly one of uri, pvc, configMap, secret"),
    "no source of images": ("spec.subject.images", {}, "set exactly one of uri, pvc, configMap, secret"),
    "local images": (
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
    "an identifier that is part of another word": (
        "spec.subject.instancePrompt", "a sksy dog", "as a separate word, for example 'a sks dog'",
    ),
    "an identifier that is part of a word with an accent": (
        "spec.subject.instancePrompt", "a sks\u00e9 dog", "as a separate word, for example 'a sks dog'",
    ),
    "an identifier like a regular expression": (
        "spec.subject",
        {"images": {"configMap": {"name": "p"}}, "class": "dog", "identifier": ".*", "instancePrompt": "a dog"},
        "as a separate word, for example 'a sks dog'",
    ),
    "an identifier that is a word of the class": (
        "spec.subject",
        {"images": {"configMap": {"name": "p"}}, "class": "toy Dog", "identifier": "dog"},
        "identifier must not be a word of the class",
    ),
    "a class prompt with the identifier": (
        "spec.priorPreservation.classPrompt", "a SKS, a dog", "classPrompt must not contain the identifier",
    ),
    "more warmup steps than steps": (
        "spec.training", {"steps": 10, "warmupSteps": 20}, "decrease warmupSteps or increase steps",
    ),
    "no checkpoint": (
        "spec.training", {"steps": 10, "checkpointEverySteps": 20}, "or no checkpoint is saved: decrease it",
    ),
    "too many validations": (
        "spec.training", {"steps": 1001, "validation": {"prompts": ["a {}"], "everySteps": 10}},
        "validation.everySteps gives more than 100 validations: increase it",
    ),
    "an interval too large for the rule about it": (
        "spec.training", {"steps": 10, "validation": {"prompts": ["a {}"], "everySteps": 10**17}},
        "should be less than or equal to",
    ),
    "the best step without validations": ("spec.output.select", "Best", "set training.validation and"),
    "the best step without scores": (
        "spec", {**BEST, "evaluation": {"enabled": False}}, "evaluation.enabled: true, or remove select",
    ),
    "patience for the last step": (
        "spec.training", BEST["training"], "training.validation.patience applies only to output.select: Best: set it",
    ),
    "a validation prompt without a placeholder": (
        "spec.training", {"validation": {"prompts": ["a dog"], "everySteps": 10}}, "should match",
    ),
    "a tracker twice": (
        "spec.training", {"reportTo": ["wandb", "wandb"]}, "reportTo contains a tracker more than once: list each",
    ),
    "thresholds without an evaluation": (
        "spec.evaluation", {"enabled": False, "thresholds": {"dino": 0.6}}, "thresholds require scores",
    ),
    "two outputs": ("spec.output.pvc", {"claimName": "models"}, "set only one of uri and pvc"),
    "an adapter of method Full": ("spec.output.formats", ["lora"], "remove lora, or set training.method: LoRA or DoRA"),
    "settings of another method": (
        "spec.training", {"lora": {"rank": 4}}, "lora does not apply to this method: remove lora, or set method: LoRA",
    ),
    "tokens of another method": (
        "spec.training", {"textualInversion": {}}, "or set method: TextualInversion",
    ),
    "a HyperNetwork of another method": (
        "spec.training", {"method": "DoRA", "hyperNetwork": {"id": "a/b"}},
        "hyperNetwork does not apply to this method: remove hyperNetwork, or set",
    ),
    "an image-prompt adapter of another method": (
        "spec.training", {"imagePrompt": {}}, "imagePrompt does not apply to this method: remove imagePrompt, or set",
    ),
    "an adapter that is no safetensors file": (
        "spec.training", {"method": "None", "imagePrompt": {"adapter": {"id": "a/b", "weights": "x.bin"}}},
        "should match",
    ),
    **{
        f"{field} without training": (
            "spec.training", {"method": "None", field: value}, "method None trains nothing, so settings of the training"
        )
        for field, value in (
            ("steps", 5), ("lrScheduler", "Cosine"), ("maxGradNorm", 2), ("warmupSteps", 1), ("randomFlip", True),
            ("textEncoder", {"train": True}), ("deepspeed", {"stage": "2"}),
            ("validation", {"prompts": ["a {}"], "everySteps": 1}),
        )
    },
    "a trained text encoder with new tokens": (
        "spec.training", {"method": "TextualInversion", "textEncoder": {"train": True}}, "remove textEncoder.train",
    ),
    **{
        f"{field} for new tokens": (
            "spec", {**MINIMAL["spec"], "training": INVERSION, "priorPreservation": {field: value}},
            "remove mode, numClassImages, images, sampler, lossWeight, or set training.method: LoRA",
        )
        for field, value in (
            ("mode", "Images"), ("numClassImages", 10), ("sampler", {"steps": 5}), ("lossWeight", 0.5),
        )
    },
    "an unknown mode": ("spec.priorPreservation.mode", "Images and more", "supported values"),
    "a number of class images without them": (
        "spec.priorPreservation", {"mode": "Prediction", "numClassImages": 10},
        "numClassImages does not apply to this mode: remove numClassImages, or set mode: Images",
    ),
    "own class images without class images": (
        "spec.priorPreservation", {"mode": "Bound", "images": {"configMap": {"name": "p"}}},
        "images does not apply to this mode: remove images, or set mode: Images",
    ),
    "a sampler without class images": (
        "spec.priorPreservation", {"mode": "None", "sampler": {"scheduler": "DPMSolverMultistep"}},
        "sampler does not apply to this mode: remove sampler, or set mode: Images",
    ),
    "a weight without a prior loss": (
        "spec.priorPreservation", {"mode": "None", "lossWeight": 1},
        "lossWeight does not apply to this mode: remove lossWeight, or set mode: Images or Prediction or Bound",
    ),
    "a single file with new tokens": (
        "spec", {**MINIMAL["spec"], "training": INVERSION, "output": {"formats": ["safetensors"]}},
        "remove safetensors, or set training.method: Full or LoRA or DoRA",
    ),
    "class images with a HyperNetwork": (
        "spec",
        {**MINIMAL["spec"], "training": NETWORK, "priorPreservation": {"numClassImages": 10}},
        "do not apply to mode Prediction, the default with training.hyperNetwork",
    ),
    "a complete model without training": (
        "spec", {**MINIMAL["spec"], "training": {"method": "None"}, "output": {"formats": ["diffusers"]}},
        "remove diffusers, or set training.method: Full or LoRA",
    ),
    "an image-prompt adapter of method Full": (
        "spec.output.formats", ["ip-adapter"], "remove ip-adapter, or set training.method: None",
    ),
    "new tokens of method Full": (
        "spec.output.formats", ["embeddings"], "remove embeddings, or set training.method: TextualInversion",
    ),
    "an adapter without its tokens": (
        "spec", {**MINIMAL["spec"], "training": PIVOTAL, "output": {"formats": ["diffusers", "lora"]}},
        "need each other: list both lora and embeddings in output.formats, or neither",
    ),
    "tokens without their adapter": (
        "spec", {**MINIMAL["spec"], "training": PIVOTAL, "output": {"formats": ["embeddings"]}},
        "need each other: list both lora and embeddings in output.formats, or neither",
    ),
    "a local output": ("spec.output.uri", "out/dog", "for a volume, set pvc: {claimName: ...}"),
    "maxWorkers less than minWorkers": (
        "spec.cluster.elastic", {"minWorkers": 4, "maxWorkers": 2}, "maxWorkers must not be less than minWorkers",
    ),
    "a name that is not a label": ("metadata.name", "my.dog", "letters, digits and hyphens, for example my-dog"),
    "a control character in a prompt": ("spec.priorPreservation.classPrompt", "a\ndog", "should match"),
    "no class": ("spec.subject", {"images": {"uri": "s3://b/x"}}, "spec.subject.class: Required value"),
    "a subject and a list": ("spec.subjects", [{**DOG, "identifier": "ohwx"}], "set exactly one of subject, subjects"),
    "no subject": ("spec", {"output": {"uri": "s3://models/dog"}}, "set exactly one of subject, subjects"),
    "a folder in a repository on the Hub": ("spec.output.uri", "hf://team/my-dog/v1", "should match"),
    "an empty list of subjects": ("spec", spec_of([]), "should have at least 1 items"),
    "two subjects with the same identifier": ("spec", spec_of([DOG, {**DOG, "identifier": "SKS"}]), "must differ"),
    "a class prompt for several subjects": (
        "spec",
        spec_of([DOG, CAT], priorPreservation={"classPrompt": "a dog"}),
        "set classPrompt in each item of subjects instead",
    ),
    "class images for several subjects": (
        "spec",
        spec_of([DOG, CAT], priorPreservation={"images": {"uri": "s3://b/dogs"}}),
        "priorPreservation.images applies to a single subject",
    ),
    "two sources of class images": (
        "spec.priorPreservation", {"images": {"uri": "s3://b/x", "secret": {"name": "p"}}}, "exactly one of uri, pvc",
    ),
    "a local folder of class images": (
        "spec.priorPreservation.images", {"uri": "dogs"}, "on a cluster, uri must be a folder in",
    ),
    "a class prompt with the identifier of its subject": (
        "spec", spec_of([DOG, {**CAT, "classPrompt": "an OHWX"}]), ": classPrompt must not contain the identifier",
    ),
    "a prompt without the identifier in a list": (
        "spec", spec_of([DOG, {**CAT, "instancePrompt": "a cat"}]), "as a separate word, for example 'a sks dog'",
    ),
    "two sources of images in a list": (
        "spec", spec_of([{**DOG, "images": {"uri": "s3://b/x", "secret": {"name": "p"}}}]), "exactly one of uri, pvc",
    ),
}  # fmt: skip


def with_value(path: str, value: object) -> dict[str, Any]:
    job = copy.deepcopy(MINIMAL)
    *parents, last = path.split(".")
    node: Any = job
    for part in parents:
        node = node.setdefault(part, {})
    node[last] = value
    return job


@pytest.mark.parametrize("case", INVALID)
def test_invalid_job_is_rejected_with_a_message(plane: ControlPlane, case: str) -> None:
    path, value, message = INVALID[case]
    with pytest.raises(ProcessError) as rejection:
        plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(with_value(path, value)))
    assert message in str(rejection.value)


VALID = {
    "a validation and all trackers": (
        "spec.training",
        {
            "steps": 1000, "reportTo": ["tensorboard", "wandb", "mlflow"],
            "validation": {"prompts": ["a {} on the beach"], "everySteps": 10},
        },
    ),
    "the best step": ("spec", BEST),
    "an output on the Hub": ("spec.output.uri", "hf://team/my-dog_1.0"),
    "an adapter with its tokens": (
        "spec", {**MINIMAL["spec"], "training": PIVOTAL, "output": {"formats": ["embeddings", "lora"]}},
    ),
    "an adapter and its tokens in one model": (
        "spec", {**MINIMAL["spec"], "training": PIVOTAL, "output": {"formats": ["diffusers"]}},
    ),
    "an identifier before a comma": ("spec.subject.instancePrompt", "photo of sks, a dog"),
    "an identifier in quotation marks": ("spec.subject.instancePrompt", "a dog named 'sks'"),
    "a caption with an identifier before a period": ("spec.subject.captions", {"1.png": "a dog. sks."}),
    "an identifier of punctuation": (
        "spec.subject",
        {"images": {"configMap": {"name": "p"}}, "class": "dog", "identifier": "$^", "instancePrompt": "a $^ dog"},
    ),
    "an identifier that is part of a word of the class": (
        "spec.subject", {"images": {"configMap": {"name": "p"}}, "class": "bulldog", "identifier": "dog"},
    ),
    "identifier auto and a class of the same name": (
        "spec.subject", {"images": {"configMap": {"name": "p"}}, "class": "auto", "identifier": "auto"},
    ),
    "two subjects": ("spec", spec_of([DOG, {**CAT, "classPrompt": "a cat", "captions": {"1.png": "ohwx asleep"}}])),
    "several subjects with selected identifiers": ("spec", spec_of([{**DOG, "identifier": "auto"}] * 8)),
    "a class prompt with a word that contains the identifier": ("spec.priorPreservation.classPrompt", "a dog on sksy"),
    "no preservation, and the scope and prompt of the evaluation": (
        "spec.priorPreservation", {"mode": "None", "sharing": "Job", "classPrompt": "a pet", "sampler": {}},
    ),
    "a HyperNetwork with a weight": (
        "spec", {**MINIMAL["spec"], "training": NETWORK, "priorPreservation": {"lossWeight": 0.5}},
    ),
    "a HyperNetwork with class images": (
        "spec",
        {**MINIMAL["spec"], "training": NETWORK, "priorPreservation": {"mode": "Images", "numClassImages": 10}},
    ),
    "a bound with a weight": ("spec.priorPreservation", {"mode": "Bound", "lossWeight": 0.5}),
}  # fmt: skip


@pytest.mark.parametrize("case", VALID)
def test_valid_job_is_accepted(plane: ControlPlane, case: str) -> None:
    plane.kubectl("create", "--dry-run=server", "-f", "-", stdin=yaml.safe_dump(with_value(*VALID[case])))


def test_minimal_job_gets_defaults(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    spec = plane.get("dreamboothjob", "my-dog", "-n", namespace)["spec"]
    assert spec["training"]["method"] == "Full"
    assert spec["runPolicy"]["backoffLimit"] == 3
    assert "elastic" not in spec["cluster"]
    assert "steps" not in spec["training"], "defaults of the base model are not stored"


SUBJECT = {"images": {"uri": "s3://b/dog"}, "class": "dog"}
SAME_JOBS: list[dict[str, Any]] = [
    {},
    {"training": {}},
    {"training": {"deepspeed": {"stage": "2"}, "textEncoder": {"train": True}}},
    {"training": {"method": "LoRA", "lora": {"rank": 4}}},
    {"training": {"validation": {"prompts": ["a {}"], "everySteps": 50}, "reportTo": ["tensorboard"]}},
    {"training": {"method": "TextualInversion", "textualInversion": {}}, "priorPreservation": {"mode": "None"}},
    {"training": {"method": "None", "imagePrompt": {"adapter": {"id": "a/b"}, "scale": 0.5}, "resolution": 64}},
    {"priorPreservation": {"mode": "Bound", "lossWeight": 0.5, "sampler": {}}},
    {"priorPreservation": {"mode": "Prediction"}},
    {"priorPreservation": {"mode": "Images", "sampler": {"steps": 5}}},
    {"priorPreservation": {"images": {"pvc": {"claimName": "photos", "path": "dogs"}}}},
    {"evaluation": {"thresholds": {"dino": 0.5}, "encoders": {"clip": "a/b"}}},
    {"output": {"pvc": {"claimName": "models"}}},
    {key: BEST[key] for key in ("output", "training")},
    {"output": {"formats": ["lora", "safetensors"]}, "training": {"method": "LoRA"}},
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
    """The spec as stored by the API server, with defaults."""
    resource = JOBS if kind == "DreamBoothJob" else RUNTIMES
    obj = {"apiVersion": "dreambooth.dev/v1alpha1", "kind": kind, "metadata": {"name": "same"}, "spec": spec}
    path = resource.path("default" if resource is JOBS else "")
    return (await api.request("POST", path, query={"dryRun": "All", "fieldValidation": "Strict"}, body=obj))["spec"]


@pytest.mark.parametrize("part", SAME_JOBS, ids=str)
async def test_server_and_python_apply_the_same_defaults_to_a_job(api: Api, part: dict[str, Any]) -> None:
    spec = {"subject": SUBJECT, **part}
    stored_spec = await stored(api, "DreamBoothJob", spec)
    assert JobSpec.model_validate(stored_spec) == JobSpec.model_validate(spec)
    assert stored_spec == await stored(api, "DreamBoothJob", stored_spec)


@pytest.mark.parametrize("part", SAME_RUNTIMES, ids=str)
async def test_server_and_python_apply_the_same_defaults_to_a_runtime(api: Api, part: dict[str, Any]) -> None:
    spec = {"image": "trainer:1", **part}
    stored_spec = await stored(api, "DreamBoothRuntime", spec)
    ours = RuntimeSpec.model_validate(spec)
    assert RuntimeSpec.model_validate(stored_spec) == ours
    # Printer columns and other clients read the stored values, not the model.
    assert stored_spec["pods"]["worker"] == ours.pods.worker.model_dump(by_alias=True, exclude_none=True)
    head = ours.pods.head.model_dump(by_alias=True, exclude_none=True)
    assert stored_spec["pods"]["head"] == {key: value for key, value in head.items() if value not in ({}, [])}


def test_worker_has_one_gpu_by_default() -> None:
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"worker": {"cpu": "8"}}}).pods.worker.gpu == 1
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"worker": {"gpu": 0}}}).pods.worker.gpu == 0
    assert RuntimeSpec.model_validate({"image": "i", "pods": {"head": {"cpu": "1"}}}).pods.head.gpu == 0


def test_only_the_run_policy_of_a_started_job_can_change(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    change = ("patch", "dbj", "my-dog", "-n", namespace, "--type=merge", "-p")
    plane.kubectl(*change, '{"spec": {"training": {"steps": 7}}}')
    plane.kubectl(*change, '{"status": {"attempts": 1}}', "--subresource=status")
    plane.kubectl(*change, '{"spec": {"runPolicy": {"suspend": true}}}')
    for spec in ('{"training": {"steps": 8}}', '{"subject": {"class": "cat"}}', '{"model": {"id": "a/b"}}'):
        with pytest.raises(ProcessError, match="is immutable once the job has started: create another job"):
            plane.kubectl(*change, f'{{"spec": {spec}}}')


def test_status_of_a_created_job_is_ignored(plane: ControlPlane, namespace: str) -> None:
    job = {**MINIMAL, "status": {"phase": "Succeeded"}}
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(job))
    assert plane.get("dbj", "my-dog", "-n", namespace)["status"]["phase"] == "Pending"


def test_every_field_has_a_description(plane: ControlPlane) -> None:
    text = plane.kubectl("explain", "dbj.spec.training")
    assert "Number of optimizer steps. Defaults to 1000, as in the paper" in text
    assert "enum: Full, LoRA, DoRA" in text
    for resource in (JOBS, RUNTIMES, LOCAL_RUNTIMES):
        crd = f"{resource.plural}.{resource.group}"
        schema = plane.get("crd", crd)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
        assert list(_undescribed(schema["properties"]["spec"], "spec")) == []


def test_columns_show_the_progress_of_a_job(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
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


def test_generated_files_are_up_to_date(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "dreambooth_operator.crd", "--root", str(tmp_path)]
    subprocess.run(command, check=True)
    assert subprocess.run([*command[:3], "--check", "--root", str(ROOT)], check=False).returncode == 0
    stray = tmp_path / "manifests" / "crd" / "stray.yaml"
    stray.write_text("")
    assert subprocess.run([*command, "--check"], check=False).returncode == 1


def _undescribed(node: dict[str, Any], path: str) -> Any:
    if not node.get("description"):
        yield path
    for name, child in node.get("properties", {}).items():
        yield from _undescribed(child, f"{path}.{name}")
