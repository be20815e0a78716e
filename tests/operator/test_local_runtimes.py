"""A LocalDreamBoothRuntime, which users write, gives its jobs nothing that its parent does not allow a job to set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, cast

import pytest
from pydantic import ValidationError
from simulation import SETTINGS, START, job_with
from test_bounds import RUNTIME, leaves

from dreambooth_api.defaulting import with_defaults, with_local_defaults, worker_resources
from dreambooth_api.job import JobSpec
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.runtime import RuntimeSpec, Storage
from dreambooth_api.started import StartedRuntime
from dreambooth_operator.controller.bounds import exceeded_bounds
from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.observed import Job, LocalRuntime, Runtime, cache_job, read_local_runtime
from dreambooth_operator.controller.reconciler import Reconciler
from dreambooth_operator.controller.resolve import ResolutionError, ResolvedJob
from dreambooth_operator.controller.resolve_local import resolve_job
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.controller.started import record_start
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import Key

HARMLESS = {
    **dict.fromkeys(
        ("defaults.learningRate", "defaults.precision", "defaults.ttlSecondsAfterFinished", "defaults.queueName"),
        "is harmless in a job as well, see test_bounds.HARMLESS",
    ),
    "parent": "restricts its namespaces itself",
}
# An example for each other field, which the bounds of the parent reject.
EXCEEDING: dict[str, dict[str, Any]] = {
    "model.id": {"model": {"id": "evil/model"}},
    "model.revision": {"model": {"id": "org/model", "revision": "main"}},
    "model.superResolution.id": {"model": {"id": "org/model", "superResolution": {"id": "evil/model"}}},
    "model.superResolution.revision": {
        "model": {"id": "org/model", "superResolution": {"id": "org/model", "revision": "main"}},
    },
    "image": {"image": "ghcr.io/corp/trainer:2"},
    "pods.worker.cpu": {"pods": {"worker": {"cpu": "4001m"}}},
    "pods.worker.memory": {"pods": {"worker": {"memory": "16385Mi"}}},
    "pods.worker.gpu": {"pods": {"worker": {"gpu": 2}}},
    "pods.nodeSelector{}": {"pods": {"nodeSelector": {"zone": "b"}}},
    "pods.tolerations[].key": {"pods": {"tolerations": [{"key": "other"}]}},
    "pods.tolerations[].operator": {"pods": {"tolerations": [{"operator": "Exists"}]}},
    "pods.tolerations[].value": {"pods": {"tolerations": [{"key": "gpu", "value": "x"}]}},
    "pods.tolerations[].effect": {"pods": {"tolerations": [{"key": "gpu", "effect": "NoExecute"}]}},
    "pods.tolerations[].tolerationSeconds": {"pods": {"tolerations": [{"key": "gpu", "tolerationSeconds": 9}]}},
    "storage.claimName": {"storage": {"claimName": "other"}},
    "storage.uri": {"storage": {"uri": "s3://models"}},
    "defaults.steps": {"defaults": {"steps": 10_001}},
    "defaults.resolution": {"defaults": {"resolution": 520}},
    "defaults.numClassImages": {"defaults": {"numClassImages": 5001}},
    "defaults.activeDeadlineSeconds": {"defaults": {"activeDeadlineSeconds": 604_801}},
    "defaults.priorityClassName": {"defaults": {"priorityClassName": "system-cluster-critical"}},
    "defaults.workloadPriorityClassName": {"defaults": {"workloadPriorityClassName": "urgent"}},
}  # fmt: skip
NAMES = {"runtimeRef": {"kind": "LocalDreamBoothRuntime", "name": "own"}}


def resolved(
    local: dict[str, Any], job: dict[str, Any] | None = None, **parent: object
) -> ResolvedJob | ResolutionError:
    """The resolution of a job in namespace team with a local runtime."""
    return resolve_job(job_with({**NAMES, **(job or {})}), *catalog(local, **parent))


def catalog(local: dict[str, Any], **parent: object) -> tuple[dict[Key, Runtime], dict[Key, LocalRuntime]]:
    spec = LocalRuntimeSpec.model_validate({"parent": "gpu", **local})
    runtime = RuntimeSpec.model_validate({**RUNTIME, **parent})
    own = LocalRuntime("own", spec, uid="l1", generation=3)
    return {Key("", "gpu"): Runtime("gpu", runtime)}, {Key("team", "own"): own}


def bounded(**bounds: object) -> dict[str, Any]:
    return {"bounds": {**RUNTIME["bounds"], **bounds}}


def accepted(found: ResolvedJob | ResolutionError) -> ResolvedJob:
    assert isinstance(found, ResolvedJob), found
    return found


def refused(found: ResolvedJob | ResolutionError) -> ResolutionError:
    assert isinstance(found, ResolutionError)
    return found


def test_every_field_is_bounded_harmless_or_left_to_the_parent() -> None:
    own, of_the_parent = set(leaves(LocalRuntimeSpec, "")), set(leaves(RuntimeSpec, ""))
    assert own == {*EXCEEDING, *HARMLESS}
    assert own - {"parent"} < of_the_parent, "a field has the path that it has in the parent"


@pytest.mark.parametrize("path", sorted(set(leaves(RuntimeSpec, "")) - set(leaves(LocalRuntimeSpec, ""))))
def test_other_fields_of_a_runtime_cannot_be_set(path: str) -> None:
    *parents, last = path.replace("{}", ".any").replace("[]", "").split(".")
    document: dict[str, Any] = {last: "any"}
    for name in reversed(parents):
        document = {name: document}
    LocalRuntimeSpec.model_validate({"parent": "gpu"})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        LocalRuntimeSpec.model_validate({"parent": "gpu", **document})


@pytest.mark.parametrize("path", EXCEEDING)
def test_value_beyond_the_bounds_of_the_parent_is_refused(path: str) -> None:
    accepted(resolved({}))
    found = refused(resolved(EXCEEDING[path]))
    assert found.reason == "RuntimeInvalid"
    field = path.replace("{}", "").split("[]")[0].removesuffix(".revision")
    assert found.message.startswith(f"LocalDreamBoothRuntime 'own' is not valid; correct it: spec.{field}")
    assert "DreamBoothRuntime 'gpu'" in found.message
    assert "; " in found.message.partition("correct it: ")[2], "without a remedy"


@pytest.mark.parametrize("path", [path for path in EXCEEDING if not path.startswith("storage")])
def test_job_with_the_values_of_its_runtime_is_judged_once_more(path: str) -> None:
    local = LocalRuntimeSpec.model_validate({"parent": "gpu", **EXCEEDING[path]})
    parent = RuntimeSpec.model_validate(RUNTIME)
    own = job_with({}).spec
    assert own
    requested = with_local_defaults(own, local)
    spec = with_defaults(requested, parent)
    assert exceeded_bounds(requested, spec, worker_resources(spec, parent), parent, "gpu", Key("team", "dog"))


def test_all_faults_are_reported_at_once() -> None:
    local = {"image": "evil", "storage": {"claimName": "other"}, "defaults": {"steps": 10**5, "resolution": 1024}}
    message = refused(resolved(local)).message
    for path in ("spec.image: 'evil'", "spec.storage.claimName", "spec.defaults.steps", "spec.defaults.resolution"):
        assert path in message


def test_faults_of_the_parent_are_not_those_of_the_runtime() -> None:
    parent = {"defaults": {}, **bounded(maxSteps=10)}
    found = refused(resolved({"image": "evil"}, **parent))
    assert "steps" not in found.message
    found = refused(resolved({}, **parent))
    assert found.reason == "OutOfBounds"
    assert "spec.training.steps: is not set" in found.message
    assert "spec.training.steps" not in refused(resolved({"defaults": {"steps": 10}}, **parent)).message


ALLOWED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a model": ({"model": {"id": "b/c"}}, {"models": ["b/c"]}),
    "an image": ({"image": "ghcr.io/corp/trainer:2"}, {"images": ["ghcr.io/corp"]}),
    "more resources": (
        {"pods": {"worker": {"cpu": "8", "memory": "32Gi", "gpu": 2}}},
        {"maxCpu": "8", "maxMemory": "32Gi", "maxGpus": 2},
    ),
    "fewer resources": ({"pods": {"worker": {"cpu": "1", "memory": "1Gi", "gpu": 0}}}, {}),
    "the parent's values": ({"image": RUNTIME["image"], "storage": {"claimName": "work"}}, {}),
    "a label": ({"pods": {"nodeSelector": {"zone": "b"}}}, {"nodeSelectorKeys": ["zone"]}),
    "a toleration": ({"pods": {"tolerations": [{"key": "spot"}]}}, {"tolerationKeys": ["spot"]}),
    "a claim": ({"storage": {"claimName": "models"}}, {"outputs": ["pvc://models"]}),
    "any claim": ({"storage": {"claimName": "models"}}, {"outputs": ["pvc://"]}),
    "a bucket": ({"storage": {"uri": "s3://b/x"}}, {"outputs": ["s3://b"]}),
    "a folder of the namespace": ({"storage": {"uri": "s3://b/team"}}, {"outputs": ["s3://b/{namespace}"]}),
    "a priority class": ({"defaults": {"priorityClassName": "high"}}, {"priorityClassNames": ["high"]}),
}  # fmt: skip


@pytest.mark.parametrize("case", ALLOWED)
def test_values_within_the_bounds_are_accepted(case: str) -> None:
    local, bounds = ALLOWED[case]
    accepted(resolved(local, **bounded(**bounds)))


STILL_DENIED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "a folder of another namespace": ({"storage": {"uri": "s3://b/team-b"}}, {"outputs": ["s3://b/{namespace}"]}),
    # Its jobs would be below s3://b/team, but share class images in s3://b/.class-images.
    "a parent of the allowed folder": ({"storage": {"uri": "s3://b"}}, {"outputs": ["s3://b/{namespace}"]}),
    "a way out of the folder": ({"storage": {"uri": "s3://b/team/.."}}, {"outputs": ["s3://b/{namespace}"]}),
    # Jobs share class images at the root of the claim.
    "a claim of which a folder is allowed": ({"storage": {"claimName": "c"}}, {"outputs": ["pvc://c/{namespace}"]}),
    "another value of the parent's label": (
        {"pods": {"nodeSelector": {"pool": "other"}}}, {"nodeSelectorKeys": ["pool"]},
    ),
    "more GPUs than all": ({"pods": {"worker": {"gpu": 3}}}, {"maxGpus": 2}),
    "a tiny CPU request": ({"pods": {"worker": {"cpu": "1m"}}}, {"maxCpu": "8"}),
}  # fmt: skip


@pytest.mark.parametrize("case", STILL_DENIED)
def test_allowing_one_value_allows_no_other(case: str) -> None:
    local, bounds = STILL_DENIED[case]
    assert refused(resolved(local, **bounded(**bounds))).reason == "RuntimeInvalid"


def test_bounds_apply_to_the_values_of_runtime_and_job_together() -> None:
    bounds = bounded(maxGpus=4)
    accepted(resolved({"pods": {"worker": {"gpu": 2}}}, {"cluster": {"workers": 2}}, **bounds))
    found = refused(resolved({"pods": {"worker": {"gpu": 2}}}, {"cluster": {"workers": 3}}, **bounds))
    assert found.reason == "OutOfBounds"
    assert "3 workers with 2 GPUs each need 6 GPUs" in found.message


def test_values_have_the_precedence_job_local_runtime_parent() -> None:
    local = {
        "model": {"id": "b/c"},
        "pods": {"worker": {"cpu": "2"}, "nodeSelector": {"zone": "b", "disk": "ssd"}, "tolerations": [{"key": "x"}]},
        "storage": {"uri": "s3://b/x"},
        "defaults": {"steps": 7, "precision": "fp32"},
    }
    bounds = bounded(models=["b/c"], nodeSelectorKeys=["zone", "disk"], tolerationKeys=["x"], outputs=["s3://b"])
    job = {"training": {"steps": 9}, "cluster": {"nodeSelector": {"zone": "c"}, "resources": {"memory": "1Gi"}}}
    found = accepted(resolved(local, job, **bounds))
    spec, parent = found.spec, RuntimeSpec.model_validate({**RUNTIME, **bounds})
    assert spec.model
    assert (spec.model.id, spec.training.steps, spec.training.precision) == ("b/c", 9, "fp32")
    assert spec.training.resolution == 512
    assert spec.cluster.node_selector == {"zone": "c", "disk": "ssd", "pool": "dreambooth"}
    assert [toleration.key for toleration in spec.cluster.tolerations] == ["gpu", "x"]
    assert (found.worker.cpu, found.worker.memory, found.worker.gpu) == ("2", "1Gi", 1)
    assert (found.claim, spec.output.uri) == ("work", "s3://b/x/team/dog")
    assert found.runtime == parent.model_copy(update={"storage": Storage(claim_name="work", uri="s3://b/x")})


def test_pods_differ_from_those_of_a_job_that_sets_the_same_only_in_their_runtime() -> None:
    own = {"image": "ghcr.io/corp/trainer:2", "pods": {"worker": {"cpu": "2"}}, "defaults": {"steps": 5}}
    same = {"image": "ghcr.io/corp/trainer:2", "resources": {"cpu": "2"}}
    bounds = bounded(images=["ghcr.io/corp"])
    by_runtime = accepted(resolved(own, **bounds))
    runtimes, _ = catalog({}, **bounds)
    job = job_with({"runtimeRef": {"name": "gpu"}, "cluster": same, "training": {"steps": 5}})
    by_job = accepted(resolve_job(job, runtimes, None))
    made = [attempt_children(job, 1, found, SETTINGS) for found in (by_runtime, by_job)]
    assert made[0] == made[1]
    assert by_runtime.spec == by_job.spec


def test_start_records_the_runtime_and_its_parent() -> None:
    identity = StartedRuntime(name="own", uid="l1", generation=3, parent="gpu")
    assert record_start(accepted(resolved({}))).runtime == identity


def started_with(parent: str | None) -> Job:
    job = job_with(NAMES)
    record = record_start(accepted(resolved({})))
    record = record.model_copy(update={"runtime": record.runtime.model_copy(update={"parent": parent})})
    return replace(job, status=job.status.model_copy(update={"started_with": record}))


@pytest.mark.parametrize("parent", ["another", None])
def test_started_job_keeps_its_parent(parent: str | None) -> None:
    # Else it would run the image that one parent allows in the pods of another.
    runtimes, local = catalog({})
    accepted(resolve_job(started_with("gpu"), runtimes, local))
    found = refused(resolve_job(started_with(parent), runtimes, local))
    assert f"spec.parent: 'gpu' is not {parent!r}, with which the job was started; set it to" in found.message


def without(path: str) -> Callable[[], ResolvedJob | ResolutionError]:
    runtimes, local = catalog({})
    key = Key("team", "own")
    match path:
        case "disabled":
            return lambda: resolve_job(job_with(NAMES), runtimes, None)
        case "missing":
            return lambda: resolve_job(job_with(NAMES), runtimes, {Key("team", "other"): local[key]})
        case "elsewhere":
            return lambda: resolve_job(job_with(NAMES), runtimes, {Key("other", "own"): local[key]})
        case "deleting":
            return lambda: resolve_job(job_with(NAMES), runtimes, {key: replace(local[key], deleting=True)})
        case "invalid":
            broken = replace(local[key], spec=None, problems=("spec.parent: Field required",))
            return lambda: resolve_job(job_with(NAMES), runtimes, {key: cast("LocalRuntime", broken)})
        case "orphan":
            return lambda: resolve_job(job_with(NAMES), {Key("", "cpu"): runtimes[Key("", "gpu")]}, local)
        case "deleting parent":
            parent = replace(runtimes[Key("", "gpu")], deleting=True)
            return lambda: resolve_job(job_with(NAMES), {Key("", "gpu"): parent}, local)
        case _:
            return lambda: resolved({"image": "evil"}, allowedNamespaces=["research"])


UNUSABLE = {
    "disabled": ("LocalRuntimesDisabled", "spec.runtimeRef.kind: LocalDreamBoothRuntime is not enabled"),
    "missing": ("RuntimeNotFound", "does not exist in namespace 'team'; set spec.runtimeRef.name to one of: other"),
    "elsewhere": ("RuntimeNotFound", "does not exist in namespace 'team'; set spec.runtimeRef.name to one of: none"),
    "deleting": ("RuntimeDeleting", "'own' is being deleted; set spec.runtimeRef.name to another one"),
    "invalid": ("RuntimeInvalid", "'own' is not valid; correct it: spec.parent: Field required"),
    "orphan": ("RuntimeNotFound", "spec.parent: DreamBoothRuntime 'gpu' does not exist; set it to one of: cpu"),
    "deleting parent": ("RuntimeDeleting", "spec.parent: DreamBoothRuntime 'gpu' is being deleted; set it to another"),
    "namespace": ("NamespaceNotAllowed", "DreamBoothRuntime 'gpu' does not allow namespace 'team'"),
}


@pytest.mark.parametrize("case", UNUSABLE)
def test_job_of_a_runtime_that_cannot_be_used_is_rejected_with_a_remedy(case: str) -> None:
    reason, message = UNUSABLE[case]
    found = refused(without(case)())
    assert found.reason == reason
    assert message in found.message
    assert "; " in found.message


def test_cached_runtime_is_small_whatever_its_users_write() -> None:
    """A key of a map has no maximum length."""
    metadata = {"name": "own", "namespace": "team", "uid": "l1", "annotations": {"key": "x" * 250_000}}
    spec = {"parent": "gpu", "pods": {"nodeSelector": {"x" * 1_000_000: "y"}}}
    cached = read_local_runtime({"metadata": metadata, "spec": spec})
    assert cached.spec is None
    assert len(repr(cached)) < 500
    message = refused(resolve_job(job_with(NAMES), catalog({})[0], {Key("team", "own"): cached})).message
    assert "is not valid; correct it: spec: has 1000049 bytes, and at most 32768 are allowed; remove values" in message


def test_local_runtime_is_used_only_if_its_kind_is_named() -> None:
    runtimes, local = catalog({"defaults": {"steps": 7}})
    runtimes[Key("", "own")] = runtimes[Key("", "default")] = runtimes[Key("", "gpu")]
    local[Key("team", "default")] = local[Key("team", "own")]
    for reference in ({}, {"runtimeRef": {"name": "own"}}):
        found = accepted(resolve_job(job_with(reference), runtimes, local))
        assert found.spec.training.steps is None
    spec = accepted(resolve_job(job_with(NAMES), runtimes, local)).spec
    assert isinstance(spec, JobSpec)
    assert spec.training.steps == 7


class Unconnected:
    """Stands for a client: only the reflectors that are made matter."""


@pytest.mark.parametrize(
    ("settings", "watched"),
    [
        (Settings(), []),
        (Settings(watch_namespaces=("a", "b")), []),
        (Settings(local_runtimes=True), ["/apis/dreambooth.dev/v1alpha1/localdreamboothruntimes"]),
        (
            Settings(local_runtimes=True, watch_namespaces=("a", "b")),
            [f"/apis/dreambooth.dev/v1alpha1/namespaces/{name}/localdreamboothruntimes" for name in "ab"],
        ),
    ],
)
def test_local_runtimes_are_watched_only_if_they_are_allowed(settings: Settings, watched: list[str]) -> None:
    made = Reconciler(cast("Api", Unconnected()), settings, now=lambda: START, progress_ca=str)
    paths = [reflector._path for reflector in made.reflectors]
    assert [path for path in paths if path.endswith("/localdreamboothruntimes")] == watched


def test_change_of_a_local_runtime_concerns_the_jobs_of_its_kind_in_its_namespace() -> None:
    made = Reconciler(cast("Api", Unconnected()), Settings(local_runtimes=True), now=lambda: START, progress_ca=str)
    for namespace, name, spec in (
        ("team", "user", NAMES), ("team", "other", {}), ("elsewhere", "user", NAMES), ("team", "done", NAMES),
    ):  # fmt: skip
        status = {"phase": "Succeeded" if name == "done" else "Rejected"}
        obj = {"metadata": {"namespace": namespace, "name": name}, "spec": spec, "status": status}
        made._jobs.cache[Key(namespace, name)] = cache_job(obj)
    made._runtimes._changed(Key("team", "own"))
    assert set(made.queue._ready) == {Key("", "team/own"), Key("team", "user")}


def test_a_change_of_metadata_alone_is_no_change_of_a_runtime() -> None:
    """An annotation must not enqueue all jobs of a namespace."""
    spec = LocalRuntimeSpec.model_validate({"parent": "gpu"})
    before, annotated = (LocalRuntime("own", spec, uid="l1", generation=3, resource_version=v) for v in ("1", "2"))
    assert before == annotated
    assert before != LocalRuntime("own", spec, uid="l1", generation=4, resource_version="2")
