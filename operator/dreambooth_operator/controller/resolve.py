"""Resolution of a job against its runtime: defaults, locations of images and output, and bounds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dreambooth_api.defaulting import policy_with_defaults, with_defaults, worker_resources
from dreambooth_api.environment import IMAGES_PATH, OUTPUT_PATH
from dreambooth_api.fields import VolumeClaim
from dreambooth_api.job import JobSpec, Resources
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.runtime import RuntimeSpec, WorkerResources
from dreambooth_api.runtimeref import DEFAULT_RUNTIME
from dreambooth_api.started import StartedRunPolicy, StartedRuntime
from dreambooth_api.status import TERMINAL, ConditionType, JobStatus
from dreambooth_api.subject import ImageSource
from dreambooth_operator.controller.bounds import bounded_run_policy, exceeded_bounds
from dreambooth_operator.controller.bounds_outputs import default_claim, default_uri
from dreambooth_operator.controller.lifecycle import OPEN
from dreambooth_operator.controller.observed import Job, Runtime


@dataclass(frozen=True, slots=True)
class ResolutionError:
    """Why a job cannot start: a CamelCase reason, and a message with the remedy.

    `run_policy` continues to apply to an attempt that runs already; None if the runtime is not known.
    """

    reason: str
    message: str
    run_policy: RunPolicy | None = None


@dataclass(frozen=True, slots=True)
class Accepted:
    """Of a job that has been accepted and needs no more children: its run policy, with the runtime's defaults.

    That is all that is needed of nearly all jobs, nearly always.
    """

    run_policy: RunPolicy


@dataclass(frozen=True, slots=True)
class ResolvedJob:
    """Everything that the children of a job are built from.

    Attributes:
        spec: the job's spec, with the runtime's defaults applied and volumes replaced by mounted paths.
        runtime: the runtime's spec.
        images: volume sources of the images of the subjects, each once. The volume with index i is mounted at
            IMAGES_PATH/i. Images with a URI have none.
        claim: PersistentVolumeClaim mounted at OUTPUT_PATH, shared by all pods of the job.
        out: the job's folder on that volume, as a path in the pods.
        store: URI or path of the shared class images, as seen by the pods.
        worker: resources of each worker.
        runtime_id: identity of the runtime.
    """

    spec: JobSpec
    runtime: RuntimeSpec
    images: tuple[dict[str, object], ...]
    claim: str
    out: str
    store: str
    worker: WorkerResources
    runtime_id: StartedRuntime


Resolution = ResolvedJob | Accepted | ResolutionError


def choose_runtime(spec: JobSpec) -> str:
    """The name of the runtime of a job."""
    return spec.runtime_ref.name if spec.runtime_ref else DEFAULT_RUNTIME


def resolve(job: Job, runtime: Runtime | None, runtimes: Sequence[str]) -> Resolution:
    """Resolve `job` against its runtime. `runtimes` are the existing names, for the message about a missing one.

    A job that has been started keeps its claim, output, image and model, which `status.startedWith` records. It is not
    resolved again before it needs children, unless it or its runtime changes.
    """
    if job.spec is None:
        return ResolutionError("InvalidSpec", "; ".join(job.problems))
    name = choose_runtime(job.spec)
    if runtime is None:
        return ResolutionError("RuntimeNotFound", _not_found(job, name, runtimes))
    if runtime.deleting and job.status.started_with is None:
        message = f"DreamBoothRuntime {name!r} is being deleted; set spec.runtimeRef.name to another one"
        return ResolutionError("RuntimeDeleting", message)
    if runtime.spec is None:
        details = "; ".join(runtime.problems)
        message = f"DreamBoothRuntime {name!r} is not valid; ask the platform team to fix: {details}"
        return ResolutionError("RuntimeInvalid", message)
    runtime_id = StartedRuntime(name=name, uid=runtime.uid, generation=runtime.generation)
    if _is_accepted(job, runtime_id):
        return Accepted(policy_with_defaults(job.spec.run_policy, runtime.spec))
    spec = with_defaults(job.spec, runtime.spec)
    found = _check(job, spec, runtime.spec, runtime_id)
    if isinstance(found, ResolutionError):
        return replace(found, run_policy=bounded_run_policy(spec.run_policy, runtime.spec.bounds))
    return _as_started(found, job.status)


def _is_accepted(job: Job, runtime_id: StartedRuntime) -> bool:
    """Whether this very job was accepted with this very runtime, and all children of its latest attempt exist."""
    status, started = job.status, job.status.started_with
    if started is None or started.runtime != runtime_id:
        return False
    if status.phase not in TERMINAL and (status.phase not in OPEN or status.ray_job_uid is None):
        return False
    accepted = next((c for c in status.conditions if c.type is ConditionType.ACCEPTED), None)
    return accepted is not None and accepted.status == "True" and accepted.observed_generation == job.generation


def _not_found(job: Job, name: str, runtimes: Sequence[str]) -> str:
    if job.status.started_with:  # its runtimeRef is immutable
        return f"DreamBoothRuntime {name!r} does not exist any more; ask the platform team to create it again"
    existing = ", ".join(sorted(runtimes)) or "none yet; ask the platform team to create one"
    return f"DreamBoothRuntime {name!r} does not exist; set spec.runtimeRef.name to one of: {existing}"


def _check(job: Job, spec: JobSpec, runtime: RuntimeSpec, runtime_id: StartedRuntime) -> ResolvedJob | ResolutionError:
    """Resolve a job whose runtime exists. `spec` has its defaults."""
    allowed, name = runtime.allowed_namespaces, runtime_id.name
    if allowed and job.key.namespace not in allowed:
        return ResolutionError(
            "NamespaceNotAllowed",
            f"DreamBoothRuntime {name!r} does not allow namespace {job.key.namespace!r}; allowed namespaces: "
            f"{', '.join(allowed)}",
        )
    resolved = _locate(job, spec, runtime, runtime_id)
    if isinstance(resolved, ResolutionError):
        return resolved
    assert job.spec
    if exceeded := exceeded_bounds(job.spec, resolved.spec, resolved.worker, runtime, name, job.key):
        return ResolutionError("OutOfBounds", "; ".join(exceeded))
    return resolved


def run_policy(job: Job, resolution: Resolution) -> RunPolicy:
    """The run policy of a job: with the runtime's defaults and within its bounds, if the runtime is known."""
    if isinstance(resolution, ResolvedJob):
        return resolution.spec.run_policy
    if resolution.run_policy:
        return resolution.run_policy
    policy, started = job.spec.run_policy if job.spec else job.valid_run_policy, job.status.started_with
    return _with_started_policy(policy, started.run_policy) if started else policy


def _with_started_policy(policy: RunPolicy, started: StartedRunPolicy) -> RunPolicy:
    """The policy of a job whose runtime is not known any more, with the defaults and bounds that it had."""
    deadline, bound = policy.active_deadline_seconds, started.max_active_deadline_seconds
    if deadline is None:
        deadline = started.active_deadline_seconds
    ttl_seconds = policy.ttl_seconds_after_finished
    return policy.model_copy(
        update={
            "active_deadline_seconds": min(deadline, bound) if deadline and bound else deadline or bound,
            "ttl_seconds_after_finished": started.ttl_seconds_after_finished if ttl_seconds is None else ttl_seconds,
            "queue_name": policy.queue_name or started.queue_name,
        }
    )


def _as_started(resolved: ResolvedJob, status: JobStatus) -> ResolvedJob:
    """The job with the image and the model of its first attempt, whatever its runtime says now.

    Bounds have been checked before: they apply to what the job asks for, not to what its runtime supplied.
    """
    started = status.started_with
    if started is None:
        return resolved
    image = started.image
    if started.image_digest and resolved.runtime.image_pull_policy != "Never":  # loaded images may have no digest
        image = with_digest(image, started.image_digest)
    second = started.model.super_resolution
    model = BaseModelRef(
        id=started.model.id,
        revision=status.model_commit or started.model.revision,
        super_resolution=second
        and ModelSource(id=second.id, revision=status.super_resolution_commit or second.revision),
    )
    cluster = resolved.spec.cluster.model_copy(update={"image": image})
    return replace(resolved, spec=resolved.spec.model_copy(update={"model": model, "cluster": cluster}))


def with_digest(image: str, digest: str) -> str:
    """A reference to the image with this digest, in the repository of `image`."""
    path, slash, last = image.partition("@")[0].rpartition("/")
    return f"{path}{slash}{last.partition(':')[0]}@{digest}"


def _locate(job: Job, spec: JobSpec, runtime: RuntimeSpec, runtime_id: StartedRuntime) -> ResolvedJob | ResolutionError:
    """Determine the source of the images and the destination of the model."""
    pvc, uri = _output(job, spec, runtime)
    if pvc is None:
        return ResolutionError(
            "NoStorage",
            "spec.output: the job's pods need a shared volume, and neither the job nor its runtime specifies one; set "
            "pvc: {claimName: ...}, or ask the platform team to set spec.storage.claimName in the runtime",
        )
    out = f"{OUTPUT_PATH}/{pvc.path}"
    spec, volumes = _mount_images(spec)
    worker = worker_resources(spec, runtime)
    resources = Resources(cpu=worker.cpu, memory=worker.memory, gpu=worker.gpu)
    output = spec.output.model_copy(update={"uri": uri, "pvc": None})
    cluster = spec.cluster.model_copy(update={"resources": resources})
    return ResolvedJob(
        spec=spec.model_copy(update={"output": output, "cluster": cluster}),
        runtime=runtime,
        images=volumes,
        claim=pvc.claim_name,
        out=out,
        store=_store(job, spec, runtime, out),
        worker=worker,
        runtime_id=runtime_id,
    )


def _mount_images(spec: JobSpec) -> tuple[JobSpec, tuple[dict[str, object], ...]]:
    """The spec with paths in the pods instead of volumes, and the source of each volume.

    Subjects and class images can share a volume: a pod with two volumes of the same claim may not start.
    """
    volumes: list[dict[str, object]] = []

    def mounted(images: ImageSource) -> ImageSource:
        volume = _volume_source(images)
        if volume is None:
            return images
        if volume not in volumes:
            volumes.append(volume)
        below = images.pvc.path if images.pvc else ""
        return ImageSource(uri="/".join(filter(None, (IMAGES_PATH, str(volumes.index(volume)), below))))

    changed = spec.update_subjects([{"images": mounted(subject.images)} for subject in spec.all_subjects])
    prior = spec.prior_preservation
    if prior.images is not None:
        prior = prior.model_copy(update={"images": mounted(prior.images)})
    return changed.model_copy(update={"prior_preservation": prior}), tuple(volumes)


def _volume_source(images: ImageSource) -> dict[str, object] | None:
    if images.config_map:
        return {"configMap": {"name": images.config_map.name}}
    if images.secret:
        return {"secret": {"secretName": images.secret.name}}
    if images.pvc:
        return {"persistentVolumeClaim": {"claimName": images.pvc.claim_name, "readOnly": True}}
    return None


def _output(job: Job, spec: JobSpec, runtime: RuntimeSpec) -> tuple[VolumeClaim | None, str | None]:
    """The folder that the job works in, and the URI that the model is uploaded to, if any."""
    if started := job.status.started_with:
        return VolumeClaim(claim_name=started.claim_name, path=started.folder), started.uri
    output = spec.output
    if output.pvc:
        return VolumeClaim(claim_name=output.pvc.claim_name, path=output.pvc.path or job.key.name), None
    return default_claim(runtime, job.key), output.uri or default_uri(runtime, job.key)


def _store(job: Job, spec: JobSpec, runtime: RuntimeSpec, out: str) -> str:
    """Where class images are shared. Sharing across namespaces needs a URI; without one, the volume is shared."""
    if started := job.status.started_with:
        return started.class_image_store
    if spec.prior_preservation.sharing == "Job":
        return f"{out}/class-images"
    if spec.prior_preservation.sharing == "Cluster" and runtime.storage.uri:
        return f"{runtime.storage.uri.rstrip('/')}/.class-images"
    return f"{OUTPUT_PATH}/.class-images"
