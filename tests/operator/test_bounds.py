"""Bounds of a runtime: every field of a job is bounded or listed here as harmless."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

import pytest
from pydantic import BaseModel, ValidationError
from pydantic.alias_generators import to_camel
from scenarios import conditions
from simulation import World, job_with, make_job

from dreambooth_api.job import JobSpec, Resources
from dreambooth_api.model import ModelSource
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Phase
from dreambooth_operator.controller.bounds import matches_image
from dreambooth_operator.controller.observed import Runtime
from dreambooth_operator.controller.resolve import ResolutionError, ResolvedJob, resolve

TEXT = "text that only the trainer reads, with a pattern and a maximum length"
TIME = "costs only time of the job's own pods, which activeDeadlineSeconds limits"
OWN_NAMESPACE = "names an object of the job's namespace, which a creator of pods could mount as well"
OWN_FOLDER = "concerns only the job's own folder"
CHOICE = "a choice of a few values with similar costs"

HARMLESS = {
    "runtimeRef.name": "a runtime restricts its namespaces itself",
    "runtimeRef.kind": "a LocalDreamBoothRuntime sets only what a job could set, see test_local_runtimes.py",
    **dict.fromkeys(
        (
            "subject.images.pvc.claimName", "subject.images.pvc.path", "subject.images.configMap.name",
            "subject.images.secret.name",
            "priorPreservation.images.pvc.claimName", "priorPreservation.images.pvc.path",
            "priorPreservation.images.configMap.name", "priorPreservation.images.secret.name",
        ),
        OWN_NAMESPACE,
    ),
    **dict.fromkeys(
        (
            "subject.class", "subject.identifier", "subject.instancePrompt", "subject.captions{}",
            "priorPreservation.classPrompt", "evaluation.prompts[]", "training.validation.prompts[]",
        ),
        TEXT,
    ),
    **dict.fromkeys(
        (
            "priorPreservation.mode", "priorPreservation.lossWeight", "priorPreservation.sampler.scheduler",
            "priorPreservation.sampler.steps", "priorPreservation.sampler.guidanceScale",
            "training.learningRate", "training.lrScheduler", "training.warmupSteps", "training.globalBatchSize",
            "training.gradientAccumulationSteps", "training.gradientCheckpointing", "training.maxGradNorm",
            "training.minSnrGamma", "training.weightDecay", "training.textEncoder.train",
            "training.textEncoder.learningRate", "training.randomCrop", "training.randomFlip",
            "training.lora.rank", "training.lora.alpha", "training.textualInversion.vectors",
            "training.deepspeed.stage",
            "training.deepspeed.offloadOptimizer", "training.seed", "evaluation.enabled", "evaluation.imagesPerPrompt",
            "evaluation.thresholds.dino", "evaluation.thresholds.clipI", "evaluation.thresholds.clipT",
            "runPolicy.backoffLimit", "runPolicy.startDeadlineSeconds", "runPolicy.progressDeadlineSeconds",
        ),
        TIME,
    ),
    **dict.fromkeys(
        (
            "training.method", "training.imagePrompt.scale", "training.precision", "training.optimizer",
            "training.compile", "output.select",
        ),
        CHOICE,
    ),
    **dict.fromkeys(
        ("training.checkpointEverySteps", "output.formats[]", "output.keepCheckpoints", "output.deletionPolicy"),
        OWN_FOLDER,
    ),
    "training.imagePrompt.adapter.weights": "a safetensors file of the adapter, whose id and revision are bounded",
    "training.validation.everySteps": "at most 100 validations of 64 images, kept in the job's own folder",
    "training.validation.patience": "only ends a training earlier",
    "training.reportTo[]": "servers, credentials and the way out of the network are the runtime's",
    "training.deepspeed.config{}": "an allow-list of keys, none of which is a path",
    "priorPreservation.sharing": "the place is the runtime's, and is accessed with credentials of the namespace",
    "cluster.elastic.minWorkers": "is at most maxWorkers, which is bounded",
    "runPolicy.suspend": "only stops pods",
    "runPolicy.ttlSecondsAfterFinished": "only deletes the job",
    "runPolicy.queueName": "LocalQueues are created by the platform team in the job's namespace, with a quota",
}  # fmt: skip
HARMLESS |= {path.replace("subject.", "subjects[]."): reason for path, reason in HARMLESS.items()}
HARMLESS["subjects[].classPrompt"] = TEXT
RUNTIME: dict[str, Any] = {
    "image": "ghcr.io/corp/trainer:1",
    "storage": {"claimName": "work"},
    "model": {
        "id": "org/model",
        "revision": "abc",
        "superResolution": {"id": "org/second", "revision": "def"},
    },
    "pods": {
        "worker": {"cpu": "4", "memory": "16Gi", "gpu": 1},
        "nodeSelector": {"pool": "dreambooth"},
        "tolerations": [{"key": "gpu", "operator": "Exists"}],
    },
    "bounds": {"maxResolution": 512},
    "defaults": {"resolution": 512, "priorityClassName": "low", "workloadPriorityClassName": "batch"},
}
# An example for each bounded field, that the runtime above rejects.
ARCHIVE = "https://photos.example.com/team/dog.zip"
EXCEEDING: dict[str, dict[str, Any]] = {
    "subject.images.uri": {"subject": {"images": {"uri": ARCHIVE}, "class": "dog"}},
    "subjects[].images.uri": {"subject": None, "subjects": [{"images": {"uri": ARCHIVE}, "class": "dog"}]},
    "priorPreservation.images.uri": {"priorPreservation": {"images": {"uri": ARCHIVE}}},
    "model.id": {"model": {"id": "evil/model"}},
    "model.revision": {"model": {"id": "org/model", "revision": "main"}},
    "model.superResolution.id": {"model": {"superResolution": {"id": "evil/model"}, "id": "org/model"}},
    "model.superResolution.revision": {
        "model": {"id": "org/model", "superResolution": {"id": "org/second", "revision": "main"}}
    },
    "training.imagePrompt.adapter.id": {
        "training": {"method": "None", "imagePrompt": {"adapter": {"id": "evil/adapter"}}}
    },
    "training.imagePrompt.adapter.revision": {
        "training": {"method": "None", "imagePrompt": {"adapter": {"id": "org/model", "revision": "main"}}}
    },
    "training.hyperNetwork.id": {"training": {"method": "LoRA", "hyperNetwork": {"id": "evil/network"}}},
    "training.hyperNetwork.revision": {
        "training": {"method": "LoRA", "hyperNetwork": {"id": "org/model", "revision": "main"}}
    },
    "priorPreservation.numClassImages": {"priorPreservation": {"numClassImages": 5001}},
    "training.steps": {"training": {"steps": 10_001}},
    "training.resolution": {"training": {"resolution": 520}},
    "evaluation.encoders.dino": {"evaluation": {"encoders": {"dino": "evil/encoder"}}},
    "evaluation.encoders.clip": {"evaluation": {"encoders": {"clip": "evil/encoder"}}},
    "output.uri": {"output": {"uri": "s3://models/team"}},
    "output.pvc.claimName": {"output": {"pvc": {"claimName": "other"}}},
    "output.pvc.path": {"output": {"pvc": {"claimName": "work", "path": "another-dog"}}},
    "cluster.workers": {"cluster": {"workers": 9}},
    "cluster.elastic.maxWorkers": {"cluster": {"elastic": {"minWorkers": 1, "maxWorkers": 9}}},
    "cluster.resources.cpu": {"cluster": {"resources": {"cpu": "4001m"}}},
    "cluster.resources.memory": {"cluster": {"resources": {"memory": "16385Mi"}}},
    "cluster.resources.gpu": {"cluster": {"resources": {"gpu": 2}}},
    "cluster.image": {"cluster": {"image": "ghcr.io/corp/trainer:2"}},
    "cluster.nodeSelector{}": {"cluster": {"nodeSelector": {"zone": "b"}}},
    "cluster.tolerations[].key": {"cluster": {"tolerations": [{"key": "other"}]}},
    "cluster.tolerations[].operator": {"cluster": {"tolerations": [{"operator": "Exists"}]}},
    "cluster.tolerations[].value": {"cluster": {"tolerations": [{"key": "gpu", "value": "x"}]}},
    "cluster.tolerations[].effect": {"cluster": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}},
    "cluster.tolerations[].tolerationSeconds": {"cluster": {"tolerations": [{"key": "gpu", "tolerationSeconds": 9}]}},
    "runPolicy.activeDeadlineSeconds": {"runPolicy": {"activeDeadlineSeconds": 604_801}},
    "runPolicy.workloadPriorityClassName": {"runPolicy": {"workloadPriorityClassName": "urgent"}},
    "runPolicy.priorityClassName": {"runPolicy": {"priorityClassName": "system-cluster-critical"}},
}  # fmt: skip


def leaves(annotation: object, path: str) -> Iterator[str]:
    """The paths of all scalar fields below a type, with [] for items and {} for values."""
    arguments = [argument for argument in get_args(annotation) if argument is not type(None)]
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        for name, field in annotation.model_fields.items():
            key = field.alias or to_camel(name)
            yield from leaves(field.annotation, f"{path}.{key}" if path else key)
    elif getattr(annotation, "__origin__", None) is list:
        yield from leaves(arguments[0], f"{path}[]")
    elif getattr(annotation, "__origin__", None) is dict:
        yield f"{path}{{}}"
    elif any((isinstance(a, type) and issubclass(a, BaseModel)) or get_args(a) for a in arguments):
        for argument in arguments:
            yield from leaves(argument, path)
    else:
        yield path


def resolved(spec: dict[str, Any], **bounds: object) -> ResolvedJob | ResolutionError:
    runtime = {**RUNTIME, "bounds": {**RUNTIME["bounds"], **bounds}}
    return resolve(job_with(spec), Runtime("default", RuntimeSpec.model_validate(runtime)), [])


def message(spec: dict[str, Any], **bounds: object) -> str:
    """The message of the rejection; empty if the job is accepted."""
    found = resolved(spec, **bounds)
    return found.message if isinstance(found, ResolutionError) else ""


def test_every_field_is_bounded_or_harmless() -> None:
    paths = set(leaves(JobSpec, ""))
    assert len(paths) > 60
    assert not set(HARMLESS) & set(EXCEEDING)
    missing = paths - set(HARMLESS) - set(EXCEEDING)
    assert not missing, "add a bound and an example to EXCEEDING, or a reason to HARMLESS"
    assert set(HARMLESS) | set(EXCEEDING) == paths, "some paths do not exist"


@pytest.mark.parametrize("path", EXCEEDING)
def test_bounds_deny_by_default(path: str) -> None:
    assert message({}) == ""
    found = message(EXCEEDING[path])
    field = path.replace("{}", "").split("[]")[0].removesuffix(".revision").removesuffix(".id")
    assert found.startswith(f"spec.{field}"), found
    assert "; " in found, "without a remedy"


ALLOWED = {
    "a model": ({"model": {"id": "b/c"}}, {"models": ["b/c"]}),
    "a revision": ({"model": {"id": "b/c", "revision": "v1"}}, {"models": ["b/c@v1"]}),
    "the runtime's model": ({"model": {"id": "org/model"}}, {}),
    "the runtime's super-resolution model": (
        {"model": {"id": "org/model", "superResolution": {"id": "org/second"}}}, {}
    ),
    "a super-resolution model": (
        {"model": {"id": "b/c", "superResolution": {"id": "b/d", "revision": "v1"}}}, {"models": ["b/c", "b/d@v1"]}
    ),
    "an adapter": (
        {"training": {"method": "None", "imagePrompt": {"adapter": {"id": "b/c", "revision": "v1"}}}},
        {"models": ["b/c@v1"]},
    ),
    "the HyperNetwork of the built-in model": (
        {"training": {"method": "LoRA", "hyperNetwork": {"id": "builtin:sprites"}}},
        {},
    ),
    "the adapter of the built-in model": ({"training": {"method": "None", "imagePrompt": {"scale": 0.5}}}, {}),
    "no steps, because nothing is trained": ({"training": {"method": "None"}}, {"maxSteps": 1}),
    "a default encoder": ({"evaluation": {"encoders": {"dino": "facebook/dino-vits16"}}}, {}),
    "an encoder": ({"evaluation": {"encoders": {"dino": "a/b"}}}, {"encoders": ["a/b"]}),
    "resources": ({"cluster": {"resources": {"cpu": "8", "memory": "32Gi"}}}, {"maxCpu": "8", "maxMemory": "32Gi"}),
    "GPUs": ({"cluster": {"resources": {"gpu": 2}}}, {"maxGpus": 2}),
    "an image": ({"cluster": {"image": "ghcr.io/corp/trainer:2"}}, {"images": ["ghcr.io/corp"]}),
    "a bucket": ({"output": {"uri": "s3://b/x/y"}}, {"outputs": ["s3://b"]}),
    "an owner on the Hub": ({"output": {"uri": "hf://corp/dog"}}, {"outputs": ["hf://corp"]}),
    "a folder of the namespace": ({"output": {"uri": "s3://b/team/"}}, {"outputs": ["s3://b/{namespace}"]}),
    "a claim": ({"output": {"pvc": {"claimName": "models", "path": "x"}}}, {"outputs": ["pvc://models"]}),
    "any claim": ({"output": {"pvc": {"claimName": "models"}}}, {"outputs": ["pvc://"]}),
    "the job's own folder": ({"output": {"pvc": {"claimName": "work"}}}, {}),
    "a web server": (
        {"subject": {"images": {"uri": f"{ARCHIVE}?signature=1/../x"}, "class": "dog"}},
        {"imageSources": ["https://photos.example.com"]},
    ),
    "a folder of a web server": (
        {"priorPreservation": {"images": {"uri": ARCHIVE}}}, {"imageSources": ["https://photos.example.com/team/"]},
    ),
    "a label": ({"cluster": {"nodeSelector": {"zone": "b"}}}, {"nodeSelectorKeys": ["zone"]}),
    "the runtime's label": ({"cluster": {"nodeSelector": {"pool": "dreambooth"}}}, {}),
    "a toleration": ({"cluster": {"tolerations": [{"key": "x"}]}}, {"tolerationKeys": ["x"]}),
    "the runtime's toleration": ({"cluster": {"tolerations": [{"key": "gpu", "operator": "Exists"}]}}, {}),
    "a priority class": ({"runPolicy": {"priorityClassName": "high"}}, {"priorityClassNames": ["high"]}),
    "a priority class of Kueue": (
        {"runPolicy": {"workloadPriorityClassName": "urgent"}}, {"workloadPriorityClassNames": ["urgent"]},
    ),
    "the default priority class of Kueue": ({"runPolicy": {"workloadPriorityClassName": "batch"}}, {}),
    "the default priority class": ({"runPolicy": {"priorityClassName": "low"}}, {}),
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_allowed_values_are_accepted(case: str) -> None:
    spec, bounds = ALLOWED[case]
    assert message(spec, **bounds) == ""


STILL_DENIED = {
    "another revision of an allowed model": ({"model": {"id": "b/c", "revision": "v2"}}, {"models": ["b/c", "b/c@v1"]}),
    "a super-resolution model beside an allowed model": (
        {"model": {"id": "b/c", "superResolution": {"id": "b/d"}}}, {"models": ["b/c"]}
    ),
    "another revision of an allowed adapter": (
        {"training": {"method": "None", "imagePrompt": {"adapter": {"id": "b/c", "revision": "v2"}}}},
        {"models": ["b/c", "b/c@v1"]},
    ),
    "an allowed model without its revision": ({"model": {"id": "b/c"}}, {"models": ["b/c@v1"]}),
    "another value of the runtime's label": (
        {"cluster": {"nodeSelector": {"pool": "other"}}},
        {"nodeSelectorKeys": ["pool"]},
    ),
    "a toleration of all taints": ({"cluster": {"tolerations": [{"operator": "Exists"}]}}, {"tolerationKeys": ["x"]}),
    "a bucket of another name": ({"output": {"uri": "s3://b-evil/x"}}, {"outputs": ["s3://b"]}),
    "another owner on the Hub": ({"output": {"uri": "hf://corp-evil/x"}}, {"outputs": ["hf://corp", "s3://corp-evil"]}),
    "the Hub, if nothing is allowed": ({"output": {"uri": "hf://corp/dog"}}, {"outputs": []}),
    "a folder of another namespace": ({"output": {"uri": "s3://b/team-b"}}, {"outputs": ["s3://b/{namespace}"]}),
    "a parent of the allowed folder": ({"output": {"uri": "s3://b"}}, {"outputs": ["s3://b/{namespace}"]}),
    "a way out of the folder": ({"output": {"uri": "s3://b/team/../x"}}, {"outputs": ["s3://b/{namespace}"]}),
    "an empty segment": ({"output": {"uri": "s3://b//team"}}, {"outputs": ["s3://b"]}),
    "a literal placeholder": ({"output": {"uri": "s3://b/{namespace}"}}, {"outputs": ["s3://b/{namespace}"]}),
    "another store": ({"output": {"uri": "gs://b/x"}}, {"outputs": ["s3://b"]}),
    "another claim": ({"output": {"pvc": {"claimName": "models-b"}}}, {"outputs": ["pvc://models"]}),
    "another folder of a claim": (
        {"output": {"pvc": {"claimName": "models", "path": "teams"}}},
        {"outputs": ["pvc://models/{namespace}"]},
    ),
    **{
        f"an archive at {uri}": (
            {"subject": {"images": {"uri": uri}, "class": "dog"}},
            {"imageSources": ["https://photos.example.com/team"]},
        )
        for uri in (
            "https://photos.example.com/team-b/x.zip", "https://photos.example.com:8443/team/x.zip",
            "https://photos.example.com.evil.org/team/x.zip", "https://photos.example.com/team/../x.zip",
            "https://photos.example.com/team/%2E%2e/x.zip", "https://photos.example.com//team/x.zip",
        )
    },
    "a tiny CPU request": ({"cluster": {"resources": {"cpu": "1m"}}}, {"maxCpu": "8"}),
}  # fmt: skip


@pytest.mark.parametrize("case", STILL_DENIED)
def test_allowing_one_value_allows_no_other(case: str) -> None:
    spec, bounds = STILL_DENIED[case]
    assert "; " in message(spec, **bounds)


@pytest.mark.parametrize(
    ("entry", "image", "matches"),
    [
        ("ghcr.io/corp", "ghcr.io/corp/trainer:1", True),
        ("ghcr.io/corp/", "ghcr.io/corp/trainer:1", True),
        ("ghcr.io/corp", "ghcr.io/corp.evil.example/trainer", False),
        ("ghcr.io/corp", "ghcr.io/corporation/trainer", False),
        ("ghcr.io/corp/trainer", "ghcr.io/corp/trainer:2", True),
        ("ghcr.io/corp/trainer:1", "ghcr.io/corp/trainer:1@sha256:00", True),
        ("ghcr.io/corp/trainer:1", "ghcr.io/corp/trainer:10", False),
        ("ghcr.io", "ghcr.io/any/thing", True),
        ("ghcr.io", "ghcr.io:8080/any/thing", False),
        ("ghcr.io", "ghcr.io.evil.example/x", False),
    ],
)
def test_images_match_at_the_boundaries_of_their_parts(entry: str, image: str, matches: bool) -> None:
    assert matches_image(entry, image) is matches


def test_jobs_of_the_runtime_use_their_own_folders() -> None:
    runtime = {**RUNTIME, "storage": {"claimName": "work", "uri": "s3://models/"}}
    found = resolve(job_with({}), Runtime("default", RuntimeSpec.model_validate(runtime)), [])
    assert isinstance(found, ResolvedJob)
    assert found.out.endswith("/dog")
    assert found.spec.output.uri == "s3://models/team/dog"
    for uri, allowed in (("s3://models/team/dog", True), ("s3://models/team/cat", False)):
        job = job_with({"output": {"uri": uri}})
        resolution = resolve(job, Runtime("default", RuntimeSpec.model_validate(runtime)), [])
        assert isinstance(resolution, ResolvedJob) is allowed, uri


@pytest.mark.parametrize("entry", ["models", "s3://b/{name}", "s3://b/{namespace", "file:///data", "pvc://a b", ""])
def test_invalid_outputs_are_rejected(entry: str) -> None:
    with pytest.raises(ValidationError):
        RuntimeSpec.model_validate({**RUNTIME, "bounds": {"outputs": [entry]}})


def test_runtime_revision_is_kept_if_the_job_names_the_model() -> None:
    found = resolved({"model": {"id": "org/model"}})
    assert isinstance(found, ResolvedJob)
    assert found.spec.model
    assert found.spec.model.revision == "abc"
    assert found.spec.model.super_resolution == ModelSource(id="org/second", revision="def")


def test_the_super_resolution_model_keeps_the_revision_of_the_runtime() -> None:
    found = resolved({"model": {"id": "org/model", "superResolution": {"id": "org/second"}}})
    assert isinstance(found, ResolvedJob)
    assert found.spec.model
    assert (found.spec.model.revision, found.spec.model.super_resolution) == (
        "abc", ModelSource(id="org/second", revision="def"),
    )  # fmt: skip


@pytest.mark.parametrize("quantity", ["0", "0m", "0.0", "00.000Gi"])
@pytest.mark.parametrize("field", ["cpu", "memory"])
def test_zero_is_not_a_quantity(field: str, quantity: str) -> None:
    with pytest.raises(ValidationError):
        Resources.model_validate({field: quantity})


@pytest.mark.parametrize(
    ("bounds", "path"),
    [
        ({"maxSteps": 999}, "spec.training.steps: is not set and defaults to up to 1000"),
        ({"maxClassImages": 999}, "spec.priorPreservation.numClassImages: is not set and defaults to up to 1000"),
    ],
)
def test_omitted_fields_do_not_escape_their_bounds(bounds: dict[str, int], path: str) -> None:
    assert path in message({}, **bounds)
    runtime = {**RUNTIME, "defaults": {}}
    found = resolve(job_with({}), Runtime("default", RuntimeSpec.model_validate(runtime)), [])
    assert isinstance(found, ResolutionError)
    assert "spec.training.resolution: is not set and has a default that depends on the model" in found.message


def test_the_default_steps_of_several_subjects_are_bounded() -> None:
    sources: list[dict[str, Any]] = [
        {"images": {"uri": "s3://b/x"}, "class": "dog", "identifier": i} for i in ("sks", "zwx")
    ]
    found = message({"subject": None, "subjects": sources}, maxSteps=1999)
    assert "spec.training.steps: is not set and defaults to up to 2000" in found
    assert message({"subject": None, "subjects": sources}, maxSteps=2000) == ""


def test_the_default_steps_with_a_hyper_network_are_bounded() -> None:
    training = {"training": {"method": "LoRA", "hyperNetwork": {"id": "builtin:sprites"}}}
    assert "spec.training.steps: is not set and defaults to up to 100, and" in message(training, maxSteps=99)
    assert message(training, maxSteps=100) == ""


def test_class_images_are_not_bounded_without_prior_preservation() -> None:
    assert message({"priorPreservation": {"mode": "Bound"}}, maxClassImages=1) == ""
    predicted = {"training": {"method": "LoRA", "hyperNetwork": {"id": "builtin:sprites"}}}
    assert message(predicted, maxClassImages=1) == "", "the default mode is Prediction"
    assert "numClassImages" in message({**predicted, "priorPreservation": {"mode": "Images"}}, maxClassImages=1)


def test_defaults_of_the_runtime_are_within_its_bounds() -> None:
    runtime = {**RUNTIME, "defaults": {"steps": 20_000, "resolution": 1024, "numClassImages": 9000}}
    found = resolve(job_with({}), Runtime("default", RuntimeSpec.model_validate(runtime)), [])
    assert isinstance(found, ResolvedJob), found


def test_job_without_a_deadline_gets_the_bound() -> None:
    found = resolved({}, maxActiveDeadlineSeconds=600)
    assert isinstance(found, ResolvedJob)
    assert found.spec.run_policy.active_deadline_seconds == 600


def test_deadline_that_is_raised_while_running_has_no_effect() -> None:
    world = World(make_job(activeDeadlineSeconds=600_000))
    world.reconcile()
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")
    world.reconcile()
    world.set_policy(active_deadline_seconds=10**9)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING, "the attempt continues"
    world.advance(604_801)
    world.reconcile()
    assert world.status.phase is Phase.FAILED
    assert conditions(world)["Succeeded"][1] == "DeadlineExceeded"
