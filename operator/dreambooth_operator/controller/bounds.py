"""Bounds of a runtime, checked on the resolved spec of a job. Pure.

A job may always use the runtime's own values. Everything else that a runtime can bound is denied unless
`spec.bounds` allows it. `tests/operator/test_bounds.py` lists every field of a job as bounded or as harmless.
"""

from __future__ import annotations

from collections.abc import Iterator

from dreambooth_api.fields import quantity_value
from dreambooth_api.job import DEFAULT_ENCODERS, JobSpec, Toleration
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.runtime import Bounds, RuntimeSpec, WorkerResources
from dreambooth_api.subject import MAX_DEFAULT_CLASS_IMAGES
from dreambooth_api.training import DEFAULT_STEPS
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_operator.controller.bounds_outputs import exceeded_outputs
from dreambooth_operator.controller.bounds_sources import exceeded_sources
from dreambooth_operator.machinery.resources import Key

# CPU has no limit, so a pod with a tiny request uses cores that no quota counts.
_MIN_CPU = "100m"


def exceeded_bounds(
    requested: JobSpec, spec: JobSpec, worker: WorkerResources, runtime: RuntimeSpec, name: str, job: Key
) -> list[str]:
    """A message for each bound that a job exceeds: path, value, bound and remedy.

    Args:
        requested: the spec as written, whose output, labels and tolerations are not yet those of the runtime.
        spec: with the runtime's defaults applied.
        worker: resources of each worker.
        name: name of the runtime.
        job: namespace and name of the job.
    """
    by = f"DreamBoothRuntime {name!r}"
    return [
        *_numbers(spec, runtime, by),
        *_workers(spec, worker, runtime, by),
        *_resources(worker, runtime, by),
        *_models(spec, runtime, by),
        *_placement(requested, runtime, by),
        *exceeded_sources(requested, runtime, by),
        *exceeded_outputs(requested, runtime, job, by),
    ]


def bounded_run_policy(policy: RunPolicy, bounds: Bounds) -> RunPolicy:
    """The policy of a job that is out of bounds: a deadline that was raised while the job runs has no effect."""
    deadline = policy.active_deadline_seconds
    bounded = min(deadline or bounds.max_active_deadline_seconds, bounds.max_active_deadline_seconds)
    return policy.model_copy(update={"active_deadline_seconds": bounded})


def _numbers(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    """The last column is the highest value that the trainer chooses for an omitted field; None if it is not known."""
    bounds, defaults, preservation = runtime.bounds, runtime.defaults, spec.prior_preservation
    default_steps = spec.training.default_steps(DEFAULT_STEPS * len(spec.all_subjects))
    rows: list[tuple[str, str, int | None, int | None, int | None, int | None]] = [
        (
            "training.resolution",
            "resolution",
            spec.training.resolution,
            bounds.max_resolution,
            defaults.resolution,
            None,
        ),
        (
            "runPolicy.activeDeadlineSeconds",
            "activeDeadlineSeconds",
            spec.run_policy.active_deadline_seconds,
            bounds.max_active_deadline_seconds,
            defaults.active_deadline_seconds,
            None,
        ),
    ]
    if spec.training.traits.trains:
        rows.append(("training.steps", "steps", spec.training.steps, bounds.max_steps, defaults.steps, default_steps))
    if spec.uses_class_images:
        images, default = preservation.num_class_images, defaults.num_class_images
        path, bound = "priorPreservation.numClassImages", bounds.max_class_images
        rows.append((path, "numClassImages", images, bound, default, MAX_DEFAULT_CLASS_IMAGES))
    for path, field, value, bound, own, chosen in rows:
        if bound is None:
            continue
        limit = max(bound, own or 0)
        if value is not None and value > limit:
            yield f"spec.{path}: {value} exceeds {limit}, the limit set by {by}; set {limit} or less"
        elif value is None and (chosen is None or chosen > limit):
            default = f"defaults to up to {chosen}" if chosen else "has a default that depends on the model"
            yield (
                f"spec.{path}: is not set and {default}, and {by} sets the limit {limit}; set {limit} or less, or ask "
                f"the platform team to set spec.defaults.{field}"
            )


def _workers(spec: JobSpec, worker: WorkerResources, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    elastic, bounds = spec.cluster.elastic, runtime.bounds
    workers = elastic.max_workers if elastic else spec.cluster.workers
    path = "spec.cluster.elastic.maxWorkers" if elastic else "spec.cluster.workers"
    if workers > bounds.max_workers:
        limit = bounds.max_workers
        yield f"{path}: {workers} exceeds {limit}, the limit set by {by}; set {limit} or less"
    own = runtime.pods.worker.gpu
    if bounds.max_gpus is None:
        if worker.gpu > own:
            yield f"spec.cluster.resources.gpu: {worker.gpu} exceeds {own}, the limit set by {by}; set {own} or less"
        return
    gpus, limit = workers * worker.gpu, bounds.max_gpus
    if worker.gpu > limit:
        yield f"spec.cluster.resources.gpu: {worker.gpu} exceeds {limit}, the limit set by {by}; set {limit} or less"
    elif gpus > limit:
        fitting = limit // worker.gpu
        yield (
            f"{path}: {workers} workers with {worker.gpu} GPUs each need {gpus} GPUs, which exceeds "
            f"{limit}, the limit set by {by}; set {fitting} or less"
        )


def _resources(worker: WorkerResources, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    own, bounds = runtime.pods.worker, runtime.bounds
    for field, value, limit in (
        ("cpu", worker.cpu, _larger(bounds.max_cpu or own.cpu, own.cpu)),
        ("memory", worker.memory, _larger(bounds.max_memory or own.memory, own.memory)),
    ):
        if quantity_value(value) > quantity_value(limit):
            path = f"spec.cluster.resources.{field}"
            yield f"{path}: {value} exceeds {limit} per worker, the limit set by {by}; set {limit} or less"
    if quantity_value(worker.cpu) < min(quantity_value(_MIN_CPU), quantity_value(own.cpu)):
        least = f"set {_MIN_CPU} or more"
        yield f"spec.cluster.resources.cpu: {worker.cpu} is below the minimum {_MIN_CPU} of a worker; {least}"


def _models(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    image, bounds = spec.cluster.image, runtime.bounds
    if image and image != runtime.image and not any(matches_image(entry, image) for entry in bounds.images):
        remedy = f"use an image under {', '.join(bounds.images)}" if bounds.images else "remove the field"
        yield f"spec.cluster.image: {image!r} is not allowed by {by}; {remedy}"
    own, model = _reference(runtime.model), _reference(spec.model or runtime.model)
    if model not in (own, *bounds.models):
        allowed = ", ".join((own, *bounds.models))
        yield f"spec.model.id: {model!r} is not allowed by {by}; set id, or id and revision, to one of: {allowed}"
    yield from _super_resolution(spec.model or runtime.model, runtime, by)
    yield from _image_prompt(spec, runtime, by)
    yield from _hyper_network(spec, runtime, by)
    for field, encoder in spec.evaluation.encoders:
        if encoder is not None and encoder not in (*DEFAULT_ENCODERS, *bounds.encoders):
            allowed = ", ".join((*DEFAULT_ENCODERS, *bounds.encoders))
            path = f"spec.evaluation.encoders.{field}"
            yield f"{path}: {encoder!r} is not allowed by {by}; remove the field, or set one of: {allowed}"


def _super_resolution(model: BaseModelRef, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    if model.super_resolution is None:
        return
    own = [_reference(runtime.model.super_resolution)] if runtime.model.super_resolution else list[str]()
    second, allowed = _reference(model.super_resolution), [*own, *runtime.bounds.models]
    if second not in allowed:
        path = "spec.model.superResolution.id"
        remedy = f"set id, or id and revision, to one of: {', '.join(allowed)}" if allowed else "remove superResolution"
        yield f"{path}: {second!r} is not allowed by {by}; {remedy}"


def _image_prompt(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    settings, allowed = spec.training.image_prompt, runtime.bounds.models
    adapter = settings and settings.adapter
    if adapter is not None and _reference(adapter) not in allowed:
        path = "spec.training.imagePrompt.adapter.id"
        remedy = f"set id, or id and revision, to one of: {', '.join(allowed)}" if allowed else "remove adapter"
        yield f"{path}: {_reference(adapter)!r} is not allowed by {by}; {remedy}"


def _hyper_network(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    network, allowed = spec.training.hyper_network, (BUILTIN_SPRITES, *runtime.bounds.models)
    if network is not None and _reference(network) not in allowed:
        remedy = f"set id, or id and revision, to one of: {', '.join(allowed)}"
        yield f"spec.training.hyperNetwork.id: {_reference(network)!r} is not allowed by {by}; {remedy}"


def _placement(spec: JobSpec, runtime: RuntimeSpec, by: str) -> Iterator[str]:
    bounds, own = runtime.bounds, runtime.pods.node_selector
    for key, value in spec.cluster.node_selector.items():
        if key in own and value != own[key]:
            rule = f"{value!r} differs from {own[key]!r}, which {by} requires"
            yield f"spec.cluster.nodeSelector[{key}]: {rule}; remove the label"
        elif key not in own and key not in bounds.node_selector_keys:
            yield f"spec.cluster.nodeSelector[{key}]: is not allowed by {by}; {_one_of(bounds.node_selector_keys)}"
    for number, toleration in enumerate(spec.cluster.tolerations):
        if not _tolerates(toleration, runtime):
            key = toleration.key or "all taints"
            rule = f"{key!r} is not allowed by {by}"
            yield f"spec.cluster.tolerations[{number}].key: {rule}; {_one_of(bounds.toleration_keys)}"
    policy, defaults = spec.run_policy, runtime.defaults
    for field, name, default, allowed in (
        ("priorityClassName", policy.priority_class_name, defaults.priority_class_name, bounds.priority_class_names),
        (
            "workloadPriorityClassName",
            policy.workload_priority_class_name,
            defaults.workload_priority_class_name,
            bounds.workload_priority_class_names,
        ),
    ):
        if name not in (None, default, *allowed):
            yield f"spec.runPolicy.{field}: {name!r} is not allowed by {by}; {_one_of(allowed)}"


def matches_image(entry: str, image: str) -> bool:
    """Whether `image` is `entry`, or a repository, tag or digest below it. `ghcr.io/corp` does not match
    `ghcr.io/corp.example/x`. After a registry alone, a colon starts a port, which makes it another registry.
    """
    entry = entry.rstrip("/")
    ends = ("/", ":", "@") if "/" in entry else ("/",)
    return image == entry or image.startswith(tuple(entry + end for end in ends))


def _tolerates(toleration: Toleration, runtime: RuntimeSpec) -> bool:
    return toleration in runtime.pods.tolerations or toleration.key in runtime.bounds.toleration_keys


def _reference(model: ModelSource) -> str:
    return f"{model.id}@{model.revision}" if model.revision else model.id


def _larger(one: str, other: str) -> str:
    return one if quantity_value(one) > quantity_value(other) else other


def _one_of(allowed: list[str]) -> str:
    return f"remove it, or use one of: {', '.join(allowed)}" if allowed else "remove it"
