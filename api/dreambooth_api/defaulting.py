"""Applies a runtime to a job. The operator and `dreambooth plan --runtime` share it. Pure."""

from __future__ import annotations

from typing import TypeVar

from dreambooth_api.fields import Strict
from dreambooth_api.job import JobSpec
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.runtime import Defaults, RuntimeSpec, WorkerResources
from dreambooth_api.runtimeref import RuntimeRef

S = TypeVar("S", bound=Strict)


def with_defaults(spec: JobSpec, runtime: RuntimeSpec) -> JobSpec:
    """A copy of `spec` with the runtime's defaults for the fields that the job does not set."""
    pods, cluster = runtime.pods, spec.cluster
    filled = _with(spec, runtime.model, runtime.image, runtime.defaults)
    placement = {
        "node_selector": {**cluster.node_selector, **pods.node_selector},
        "tolerations": [*pods.tolerations, *cluster.tolerations],
    }
    return filled.model_copy(
        update={
            "cluster": filled.cluster.model_copy(update=placement),
            "run_policy": policy_with_defaults(spec.run_policy, runtime),
        }
    )


def with_local_defaults(spec: JobSpec, local: LocalRuntimeSpec) -> JobSpec:
    """A copy of `spec` as if the job had set what the local runtime sets, and named the parent as its runtime.

    The storage is left out: it supplies a folder for each job.
    """
    pods, cluster, worker = local.pods, spec.cluster, local.pods.worker
    filled = _with(spec, local.model, local.image, local.defaults)
    placement = {
        "resources": _fill(cluster.resources, cpu=worker.cpu, memory=worker.memory, gpu=worker.gpu),
        "node_selector": {**pods.node_selector, **cluster.node_selector},
        "tolerations": [*pods.tolerations, *cluster.tolerations],
    }
    return filled.model_copy(
        update={
            "runtime_ref": RuntimeRef(name=local.parent),
            "cluster": filled.cluster.model_copy(update=placement),
        }
    )


def with_local_storage(runtime: RuntimeSpec, local: LocalRuntimeSpec) -> RuntimeSpec:
    """A copy of the parent with the storage that the local runtime sets."""
    return runtime.model_copy(
        update={"storage": runtime.storage.model_copy(update=local.storage.model_dump(exclude_none=True))}
    )


def policy_with_defaults(policy: RunPolicy, runtime: RuntimeSpec) -> RunPolicy:
    """A copy of `policy` with the runtime's defaults for the fields that the job does not set."""
    filled = _policy(policy, runtime.defaults)
    return _fill(filled, active_deadline_seconds=runtime.bounds.max_active_deadline_seconds)


def _policy(policy: RunPolicy, defaults: Defaults) -> RunPolicy:
    return _fill(
        policy,
        active_deadline_seconds=defaults.active_deadline_seconds,
        ttl_seconds_after_finished=defaults.ttl_seconds_after_finished,
        queue_name=defaults.queue_name,
        priority_class_name=defaults.priority_class_name,
        workload_priority_class_name=defaults.workload_priority_class_name,
    )


def _with(spec: JobSpec, model: BaseModelRef | None, image: str | None, defaults: Defaults) -> JobSpec:
    images = defaults.num_class_images if spec.uses_class_images else None
    trains = spec.training.traits.trains
    return spec.model_copy(
        update={
            "model": _model(spec, model),
            "training": _fill(
                spec.training,
                steps=spec.training.default_steps(defaults.steps) if trains and defaults.steps else None,
                learning_rate=defaults.learning_rate if trains else None,
                resolution=defaults.resolution,
                precision=defaults.precision,
            ),
            "prior_preservation": _fill(spec.prior_preservation, num_class_images=images),
            "cluster": _fill(spec.cluster, image=image),
            "run_policy": _policy(spec.run_policy, defaults),
        }
    )


def worker_resources(spec: JobSpec, runtime: RuntimeSpec) -> WorkerResources:
    """Resources of each worker: those of the job, else those of the runtime."""
    requested = {k: v for k, v in spec.cluster.resources.model_dump().items() if v is not None}
    return runtime.pods.worker.model_copy(update=requested)


def _model(spec: JobSpec, own: BaseModelRef | None) -> BaseModelRef | None:
    """A job that names the runtime's model without a revision keeps the runtime's revision.

    That also applies to the super-resolution model.
    """
    model = spec.model
    if model is None or own is None:
        return model or own
    second = model.super_resolution
    if second is not None and own.super_resolution is not None and _names(second, own.super_resolution):
        second = own.super_resolution
    if _names(model, own):
        return own.model_copy(update={"super_resolution": second}) if second else own
    return model.model_copy(update={"super_resolution": second})


def _names(model: ModelSource, own: ModelSource) -> bool:
    """Whether a job names a model of the runtime without a revision."""
    return model.id == own.id and model.revision is None


def _fill(model: S, **values: object) -> S:
    """`model`, or a copy of it, with `values` for the fields that are None."""
    update = {k: v for k, v in values.items() if v is not None and getattr(model, k) is None}
    return model.model_copy(update=update) if update else model
