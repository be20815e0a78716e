"""From a job and its runtime to what will run, or to the sentences that say why it cannot.

Pure. A job beyond its runtime's bounds is told all of them at once, each with the value, the bound and
what to write instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from dreambooth_api.environment import IMAGES_PATH, OUTPUT_PATH
from dreambooth_api.fields import Strict, VolumeClaim
from dreambooth_api.job import JobSpec, Resources
from dreambooth_api.runtime import DEFAULT_RUNTIME, Bounds, PodResources, RuntimeSpec
from dreambooth_operator.controller.views import Job, Runtime

S = TypeVar("S", bound=Strict)


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a job cannot start: one CamelCase word and a sentence with the way out."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Resolved:
    """What will run.

    Attributes:
        spec: the job's, with the runtime's defaults filled in and volumes turned into mounted paths.
        runtime: the runtime's.
        images: what is mounted at IMAGES_PATH, as a pod's volume source; None where images come by URI.
        claim: the PersistentVolumeClaim mounted at OUTPUT_PATH, which all pods of the job share.
        out: the job's folder on it, as the trainer sees it.
        out_shown: where the model ends, for a person: a URI, or pvc://<claim>/<folder>.
        store: where class images are shared, as the trainer sees it.
        worker: resources of one worker.
    """

    spec: JobSpec
    runtime: RuntimeSpec
    images: dict[str, object] | None
    claim: str
    out: str
    out_shown: str
    store: str
    worker: PodResources


def choose_runtime(spec: JobSpec) -> str:
    """The name of the runtime that a job uses."""
    return spec.runtime_ref.name if spec.runtime_ref else DEFAULT_RUNTIME


def resolve(job: Job, runtime: Runtime | None, runtimes: Sequence[str]) -> Resolved | Problem:
    """See the module. `runtimes` are the names that exist, for the sentence that says one does not."""
    if job.spec is None:
        return Problem("InvalidSpec", "; ".join(job.problems))
    name = choose_runtime(job.spec)
    if runtime is None:
        there = ", ".join(sorted(runtimes)) or "none yet; the platform team creates them"
        said = f"DreamBoothRuntime {name!r} does not exist"
        return Problem("RuntimeNotFound", f"{said}; write the name of one into spec.runtimeRef.name: {there}")
    if runtime.spec is None:
        said = "; ".join(runtime.problems)
        return Problem("RuntimeInvalid", f"DreamBoothRuntime {name!r} is not valid; tell the platform team: {said}")
    allowed = runtime.spec.allowed_namespaces
    if allowed and job.key.namespace not in allowed:
        return Problem(
            "NamespaceNotAllowed",
            f"DreamBoothRuntime {name!r} is not for namespace {job.key.namespace!r}; it is for: {', '.join(allowed)}",
        )
    spec = with_defaults(job.spec, runtime.spec)
    resolved = _locate(job, spec, runtime.spec)
    if isinstance(resolved, Problem):
        return resolved
    if broken := list(_broken_bounds(job.spec, resolved, name)):
        return Problem("OutOfBounds", "; ".join(broken))
    return resolved


def with_defaults(spec: JobSpec, runtime: RuntimeSpec) -> JobSpec:
    """`spec` with the runtime's word where the job is silent. A new object; the input stays as it was."""
    defaults, cluster = runtime.defaults, spec.cluster
    return spec.model_copy(
        update={
            "model": spec.model or runtime.model,
            "training": _fill(
                spec.training,
                steps=defaults.steps,
                learning_rate=defaults.learning_rate,
                resolution=defaults.resolution,
                precision=defaults.precision,
            ),
            "prior_preservation": _fill(spec.prior_preservation, num_class_images=defaults.num_class_images),
            "cluster": _fill(cluster, image=runtime.image).model_copy(
                update={
                    "node_selector": {**runtime.pods.node_selector, **cluster.node_selector},
                    "tolerations": [*runtime.pods.tolerations, *cluster.tolerations],
                }
            ),
            "run_policy": _fill(
                spec.run_policy,
                active_deadline_seconds=defaults.active_deadline_seconds,
                ttl_seconds_after_finished=defaults.ttl_seconds_after_finished,
                queue_name=defaults.queue_name,
                priority_class_name=defaults.priority_class_name,
            ),
        }
    )


def _fill(model: S, **values: object) -> S:
    """`model` with `values` where it has None."""
    return model.model_copy(update={k: v for k, v in values.items() if v is not None and getattr(model, k) is None})


def _locate(job: Job, spec: JobSpec, runtime: RuntimeSpec) -> Resolved | Problem:
    """Find where images come from and the model goes to."""
    pvc, uri = _output(job, spec, runtime)
    if pvc is None:
        return Problem(
            "NoStorage",
            "spec.output: the job's pods need a folder that they share, and neither the job nor its runtime names a "
            "volume; write pvc: {claimName: ...}, or ask the platform team for spec.storage.claimName in the runtime",
        )
    out = f"{OUTPUT_PATH}/{pvc.path}"
    images = spec.subject.images
    volume: dict[str, object] | None = None
    below = ""
    if images.config_map:
        volume = {"configMap": {"name": images.config_map.name}}
    elif images.secret:
        volume = {"secret": {"secretName": images.secret.name}}
    elif images.pvc:
        volume = {"persistentVolumeClaim": {"claimName": images.pvc.claim_name, "readOnly": True}}
        below = images.pvc.path
    if volume is not None:
        source = type(images)(uri="/".join(filter(None, (IMAGES_PATH, below))))
        spec = spec.model_copy(update={"subject": spec.subject.model_copy(update={"images": source})})
    worker = _worker(spec.cluster.resources, runtime.pods.worker)
    resources = Resources(cpu=worker.cpu, memory=worker.memory, gpu=worker.gpu)
    output = spec.output.model_copy(update={"uri": uri, "pvc": None})
    cluster = spec.cluster.model_copy(update={"resources": resources})
    return Resolved(
        spec=spec.model_copy(update={"output": output, "cluster": cluster}),
        runtime=runtime,
        images=volume,
        claim=pvc.claim_name,
        out=out,
        out_shown=uri or f"pvc://{pvc.claim_name}/{pvc.path}",
        store=_store(spec, runtime, out),
        worker=worker,
    )


def _output(job: Job, spec: JobSpec, runtime: RuntimeSpec) -> tuple[VolumeClaim | None, str | None]:
    """The folder that the job works in, and where the model is uploaded to, if anywhere."""
    storage, output, name = runtime.storage, spec.output, job.key.name
    if output.pvc:
        return VolumeClaim(claim_name=output.pvc.claim_name, path=output.pvc.path or name), None
    work = VolumeClaim(claim_name=storage.claim_name, path=name) if storage.claim_name else None
    below = f"{storage.uri.rstrip('/')}/{job.key.namespace}/{name}" if storage.uri else None
    return work, output.uri or below


def _store(spec: JobSpec, runtime: RuntimeSpec, out: str) -> str:
    """Where class images are shared. Beyond a namespace only a URI reaches; else the volume is as far as it goes."""
    if spec.prior_preservation.sharing == "Job":
        return f"{out}/class-images"
    if spec.prior_preservation.sharing == "Cluster" and runtime.storage.uri:
        return f"{runtime.storage.uri.rstrip('/')}/.class-images"
    return f"{OUTPUT_PATH}/.class-images"


def _worker(asked: Resources, usual: PodResources) -> PodResources:
    given = {k: v for k, v in asked.model_dump().items() if v is not None}
    return usual.model_copy(update=given)


def _broken_bounds(asked: JobSpec, resolved: Resolved, runtime: str) -> list[str]:
    """A sentence for each bound that the job breaks."""
    spec, bounds = resolved.spec, resolved.runtime.bounds
    workers = spec.cluster.elastic.max_workers if spec.cluster.elastic else spec.cluster.workers
    field = "spec.cluster.elastic.maxWorkers" if spec.cluster.elastic else "spec.cluster.workers"
    most = f"the most that DreamBoothRuntime {runtime!r} allows"
    numbers = (
        (field, workers, bounds.max_workers),
        ("spec.training.steps", spec.training.steps, bounds.max_steps),
        ("spec.training.resolution", spec.training.resolution, bounds.max_resolution),
        ("spec.priorPreservation.numClassImages", spec.prior_preservation.num_class_images, bounds.max_class_images),
        (
            "spec.runPolicy.activeDeadlineSeconds",
            spec.run_policy.active_deadline_seconds,
            bounds.max_active_deadline_seconds,
        ),
    )
    broken = [
        f"{path}: {value} is above {bound}, {most}; write {bound} or less"
        for path, value, bound in numbers
        if value is not None and bound is not None and value > bound
    ]
    if bounds.max_active_deadline_seconds and spec.run_policy.active_deadline_seconds is None:
        broken.append(
            f"spec.runPolicy.activeDeadlineSeconds: missing, and DreamBoothRuntime {runtime!r} demands one; "
            f"write {bounds.max_active_deadline_seconds} or less"
        )
    gpus = workers * resolved.worker.gpu
    if bounds.max_gpus is not None and gpus > bounds.max_gpus:
        fewer = max(1, bounds.max_gpus // max(1, resolved.worker.gpu))
        broken.append(
            f"{field}: {workers} x {resolved.worker.gpu} GPUs are {gpus}, above {bounds.max_gpus}, {most}; "
            f"write {fewer} or less"
        )
    return broken + list(_broken_choices(asked, resolved.runtime, bounds, runtime))


def _broken_choices(asked: JobSpec, runtime: RuntimeSpec, bounds: Bounds, name: str) -> list[str]:
    broken: list[str] = []
    image = asked.cluster.image
    if image and image != runtime.image and not any(image.startswith(prefix) for prefix in bounds.images):
        ways = f"an image under {', '.join(bounds.images)}" if bounds.images else "nothing: the runtime brings its own"
        broken.append(f"spec.cluster.image: {image!r} is not allowed by DreamBoothRuntime {name!r}; write {ways}")
    model = asked.model
    if model and model.id != runtime.model.id and model.id not in bounds.models:
        ways = ", ".join([runtime.model.id, *bounds.models])
        broken.append(f"spec.model.id: {model.id!r} is not allowed by DreamBoothRuntime {name!r}; write one of: {ways}")
    return broken
