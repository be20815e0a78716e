"""Resolution of a job against its runtime: defaults, locations of images and output, and bounds. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from dreambooth_api.defaulting import with_defaults, worker_resources
from dreambooth_api.environment import IMAGES_PATH, OUTPUT_PATH
from dreambooth_api.fields import VolumeClaim
from dreambooth_api.job import JobSpec, Resources, RunPolicy
from dreambooth_api.runtime import DEFAULT_RUNTIME, RuntimeSpec, WorkerResources
from dreambooth_api.subject import ImageSource
from dreambooth_operator.controller.bounds import bounded_run_policy, exceeded_bounds
from dreambooth_operator.controller.bounds_outputs import default_claim, default_uri
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
    """

    spec: JobSpec
    runtime: RuntimeSpec
    images: tuple[dict[str, object], ...]
    claim: str
    out: str
    store: str
    worker: WorkerResources


def choose_runtime(spec: JobSpec) -> str:
    """The name of the runtime of a job."""
    return spec.runtime_ref.name if spec.runtime_ref else DEFAULT_RUNTIME


def resolve(job: Job, runtime: Runtime | None, runtimes: Sequence[str]) -> ResolvedJob | ResolutionError:
    """Resolve `job` against its runtime. `runtimes` are the existing names, for the message about a missing one."""
    if job.spec is None:
        return ResolutionError("InvalidSpec", "; ".join(job.problems))
    name = choose_runtime(job.spec)
    if runtime is None:
        existing = ", ".join(sorted(runtimes)) or "none yet; ask the platform team to create one"
        message = f"DreamBoothRuntime {name!r} does not exist; set spec.runtimeRef.name to one of: {existing}"
        return ResolutionError("RuntimeNotFound", message)
    if runtime.spec is None:
        details = "; ".join(runtime.problems)
        message = f"DreamBoothRuntime {name!r} is not valid; ask the platform team to fix: {details}"
        return ResolutionError("RuntimeInvalid", message)
    spec = with_defaults(job.spec, runtime.spec)
    found = _check(job, spec, runtime.spec, name)
    if isinstance(found, ResolutionError):
        return replace(found, run_policy=bounded_run_policy(spec.run_policy, runtime.spec.bounds))
    return found


def _check(job: Job, spec: JobSpec, runtime: RuntimeSpec, name: str) -> ResolvedJob | ResolutionError:
    """Resolve a job whose runtime exists. `spec` has its defaults."""
    allowed = runtime.allowed_namespaces
    if allowed and job.key.namespace not in allowed:
        return ResolutionError(
            "NamespaceNotAllowed",
            f"DreamBoothRuntime {name!r} does not allow namespace {job.key.namespace!r}; allowed namespaces: "
            f"{', '.join(allowed)}",
        )
    resolved = _locate(job, spec, runtime)
    if isinstance(resolved, ResolutionError):
        return resolved
    assert job.spec
    if exceeded := exceeded_bounds(job.spec, resolved.spec, resolved.worker, runtime, name, job.key):
        return ResolutionError("OutOfBounds", "; ".join(exceeded))
    return resolved


def run_policy(job: Job, resolution: ResolvedJob | ResolutionError) -> RunPolicy:
    """The run policy of a job: with the runtime's defaults and within its bounds, if the runtime is known."""
    if isinstance(resolution, ResolvedJob):
        return resolution.spec.run_policy
    if resolution.run_policy:
        return resolution.run_policy
    return job.spec.run_policy if job.spec else RunPolicy()


def _locate(job: Job, spec: JobSpec, runtime: RuntimeSpec) -> ResolvedJob | ResolutionError:
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
        store=_store(spec, runtime, out),
        worker=worker,
    )


def _mount_images(spec: JobSpec) -> tuple[JobSpec, tuple[dict[str, object], ...]]:
    """The spec with paths in the pods instead of volumes, and the source of each volume.

    Subjects can share a volume: a pod with two volumes of the same claim may not start.
    """
    volumes: list[dict[str, object]] = []
    sources: list[ImageSource] = []
    for subject in spec.all_subjects:
        images = subject.images
        volume = _volume_source(images)
        if volume is not None:
            if volume not in volumes:
                volumes.append(volume)
            below = images.pvc.path if images.pvc else ""
            path = "/".join(filter(None, (IMAGES_PATH, str(volumes.index(volume)), below)))
            images = ImageSource(uri=path)
        sources.append(images)
    return spec.update_subjects([{"images": source} for source in sources]), tuple(volumes)


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
    output = spec.output
    if output.pvc:
        return VolumeClaim(claim_name=output.pvc.claim_name, path=output.pvc.path or job.key.name), None
    return default_claim(runtime, job.key), output.uri or default_uri(runtime, job.key)


def _store(spec: JobSpec, runtime: RuntimeSpec, out: str) -> str:
    """Where class images are shared. Sharing across namespaces needs a URI; without one, the volume is shared."""
    if spec.prior_preservation.sharing == "Job":
        return f"{out}/class-images"
    if spec.prior_preservation.sharing == "Cluster" and runtime.storage.uri:
        return f"{runtime.storage.uri.rstrip('/')}/.class-images"
    return f"{OUTPUT_PATH}/.class-images"
