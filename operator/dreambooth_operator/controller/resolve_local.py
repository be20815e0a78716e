"""Resolution of jobs that name a LocalDreamBoothRuntime, which users write. Pure.

Such a job is resolved against the parent as if it had itself set what its runtime sets, so the bounds of the parent
apply to both. Only the storage has no counterpart in a job: here alone it is compared with `bounds.outputs`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from dreambooth_api.defaulting import with_defaults, with_local_defaults, with_local_storage, worker_resources
from dreambooth_api.environment import IMAGES_PATH
from dreambooth_api.job import JobSpec
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.runtime import NAMESPACE_PLACEHOLDER, RuntimeSpec
from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND, RUNTIME_KIND
from dreambooth_api.started import StartedRuntime
from dreambooth_api.subject import ImageSource, Subject
from dreambooth_api.uris import volume_uri
from dreambooth_operator.controller.bounds import exceeded_bounds
from dreambooth_operator.controller.bounds_outputs import is_below
from dreambooth_operator.controller.observed import Job, LocalRuntime, Runtime
from dreambooth_operator.controller.resolve import Resolution, ResolutionError, ResolvedJob, choose_runtime, resolve
from dreambooth_operator.machinery.resources import Key

# Where a local runtime sets what a job sets at another path.
_PATHS = {
    "spec.model.": "spec.model.",
    "spec.cluster.image": "spec.image",
    "spec.cluster.resources.": "spec.pods.worker.",
    "spec.cluster.": "spec.pods.",
    "spec.training.": "spec.defaults.",
    "spec.priorPreservation.": "spec.defaults.",
    "spec.runPolicy.": "spec.defaults.",
}
# Stands for a job that sets nothing. A subject is required.
_NOTHING = JobSpec(subject=Subject.model_validate({"images": ImageSource(uri=IMAGES_PATH), "class": "none"}))


def resolve_job(job: Job, runtimes: Mapping[Key, Runtime], local: Mapping[Key, LocalRuntime] | None) -> Resolution:
    """Resolve a job against the runtime that it names. `local` is None if the operator does not allow these."""
    names = sorted(key.name for key in runtimes)
    reference = job.spec.runtime_ref if job.spec else None
    if job.spec is None or reference is None or reference.kind != LOCAL_RUNTIME_KIND:
        name = choose_runtime(job.spec) if job.spec else ""
        return resolve(job, runtimes.get(Key("", name)), names)
    found = _find(job, reference.name, local)
    if isinstance(found, ResolutionError):
        return found
    chosen, spec = found
    label = f"{LOCAL_RUNTIME_KIND} {chosen.name!r}"
    parent = runtimes.get(Key("", spec.parent))
    if error := _parent_error(job, spec, parent, label, names):
        return error
    filled = replace(job, spec=with_local_defaults(job.spec, spec))
    if parent is None or parent.spec is None:
        return resolve(filled, parent, names)
    allowed = parent.spec.allowed_namespaces
    if not allowed or job.key.namespace in allowed:
        faults = exceeded_by_runtime(spec, parent.spec, job.key.namespace)
        if faults:
            return ResolutionError("RuntimeInvalid", f"{label} is not valid; correct it: {'; '.join(faults)}")
    resolved = resolve(filled, replace(parent, spec=with_local_storage(parent.spec, spec)), names)
    if not isinstance(resolved, ResolvedJob):
        return resolved
    identity = StartedRuntime(name=chosen.name, uid=chosen.uid, generation=chosen.generation, parent=spec.parent)
    return replace(resolved, runtime_id=identity)


def _find(
    job: Job, name: str, local: Mapping[Key, LocalRuntime] | None
) -> tuple[LocalRuntime, LocalRuntimeSpec] | ResolutionError:
    """The runtime in the job's namespace, if it can be used."""
    namespace, label = job.key.namespace, f"{LOCAL_RUNTIME_KIND} {name!r}"
    if local is None:
        rule = f"spec.runtimeRef.kind: {LOCAL_RUNTIME_KIND} is not enabled in this cluster"
        remedy = "ask the platform team to set localRuntimes.enabled in the operator's chart"
        return ResolutionError("LocalRuntimesDisabled", f"{rule}; name a {RUNTIME_KIND}, or {remedy}")
    chosen = local.get(Key(namespace, name))
    if chosen is None:
        if job.status.started_with:  # its runtimeRef is immutable
            remedy = "create it again"
        else:
            existing = sorted(key.name for key in local if key.namespace == namespace)
            remedy = f"set spec.runtimeRef.name to one of: {', '.join(existing) or 'none yet; create one'}"
        return ResolutionError("RuntimeNotFound", f"{label} does not exist in namespace {namespace!r}; {remedy}")
    if chosen.deleting and job.status.started_with is None:
        message = f"{label} is being deleted; set spec.runtimeRef.name to another one"
        return ResolutionError("RuntimeDeleting", message)
    if chosen.spec is None:
        return ResolutionError("RuntimeInvalid", f"{label} is not valid; correct it: {'; '.join(chosen.problems)}")
    return chosen, chosen.spec


def _parent_error(
    job: Job, spec: LocalRuntimeSpec, parent: Runtime | None, label: str, names: list[str]
) -> ResolutionError | None:
    """Why a local runtime cannot be used with its parent.

    A started job keeps its image, claim and output, which the bounds of another parent may not allow.
    """
    started = job.status.started_with
    if started and started.runtime.parent != spec.parent:
        rule = f"spec.parent: {spec.parent!r} is not {started.runtime.parent!r}, with which the job was started"
        remedy = f"set it to {started.runtime.parent!r}, or create the job again"
        return ResolutionError("RuntimeInvalid", f"{label}: {rule}; {remedy}")
    about = f"{label}: spec.parent: {RUNTIME_KIND} {spec.parent!r}"
    if parent is None:
        existing = ", ".join(names) or "none yet; ask the platform team to create one"
        return ResolutionError("RuntimeNotFound", f"{about} does not exist; set it to one of: {existing}")
    if parent.deleting and started is None:
        return ResolutionError("RuntimeDeleting", f"{about} is being deleted; set it to another one")
    return None


def exceeded_by_runtime(local: LocalRuntimeSpec, parent: RuntimeSpec, namespace: str) -> list[str]:
    """A message for each value of a local runtime that its parent does not allow: path, value, bound and remedy."""
    before = set(_exceeded(_NOTHING, local.parent, parent))
    found = _exceeded(with_local_defaults(_NOTHING, local), local.parent, parent)
    faults = [_at_runtime(message) for message in found if message not in before]
    return [*faults, *_storage(local, parent, namespace)]


def _exceeded(requested: JobSpec, name: str, parent: RuntimeSpec) -> list[str]:
    spec = with_defaults(requested, parent)
    return exceeded_bounds(requested, spec, worker_resources(spec, parent), parent, name, Key("", ""))


def _at_runtime(message: str) -> str:
    path = next(path for path in _PATHS if message.startswith(path))
    return _PATHS[path] + message.removeprefix(path)


def _storage(local: LocalRuntimeSpec, parent: RuntimeSpec, namespace: str) -> Iterator[str]:
    """Jobs write to their own folders in the storage, and share class images outside of these: all of it counts."""
    own, storage, allowed = local.storage, parent.storage, parent.bounds.outputs
    found: list[tuple[str, str]] = []
    if own.claim_name not in (None, storage.claim_name):
        found.append(("claimName", volume_uri(own.claim_name, "")))
    if own.uri not in (None, storage.uri):
        found.append(("uri", own.uri))
    folders = [entry.replace(NAMESPACE_PLACEHOLDER, namespace) for entry in allowed]
    for field, uri in found:
        if not any(is_below(uri, folder) for folder in folders):
            remedy = f"remove it, or use one of: {', '.join(folders)}" if folders else "remove it"
            yield f"spec.storage.{field}: {uri!r} is not allowed by {RUNTIME_KIND} {local.parent!r}; {remedy}"
