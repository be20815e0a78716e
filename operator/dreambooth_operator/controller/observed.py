"""Observed objects: a job, its runtime and its children, parsed from what the API server sent. Pure.

Only what a decision needs is kept, and names are interned, so that ten thousand RayJobs fit into little memory.
"""

from __future__ import annotations

import hashlib
import zlib
from dataclasses import dataclass, field, replace
from datetime import datetime
from sys import intern
from typing import Any, Generic, TypeVar

from pydantic import ValidationError
from pydantic_core import ErrorDetails, to_json

from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.lenient import parse_leniently
from dreambooth_api.localruntime import LocalRuntimeSpec
from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Failure, JobStatus, fit_message, parse_status
from dreambooth_operator.controller.observed_pods import METADATA_FIELDS, Pod, one_line
from dreambooth_operator.controller.summary import JobSummary, summarize_job
from dreambooth_operator.machinery.partial import Fields
from dreambooth_operator.machinery.resources import Json, Key, part, parts
from dreambooth_operator.resources import JOB_LABEL, JOB_SHA256_ANNOTATION, JOBS

S = TypeVar("S", RuntimeSpec, LocalRuntimeSpec)
_MAX_CONFIG_BYTES = 8192
_MAX_LOCAL_RUNTIME_BYTES = 32768
_COMPRESSION_LEVEL = 1  # the fastest; the others save little of a text of 2 KB
# The fields that read_ray_cluster and read_erase_job read, and those of read_ray_job.
CHILD_FIELDS: Fields = {"metadata": METADATA_FIELDS, "status": None}
RAY_JOB_FIELDS: Fields = {**CHILD_FIELDS, "spec": {"suspend": None}}
# Reported fields of the status that no decision depends on. The time of a report matters only when a deadline passes.
_PROGRESS_FIELDS = ("training", "classImages", "subjectScores")


@dataclass(frozen=True, slots=True)
class Job:
    """A DreamBoothJob.

    `spec` is None if it is not valid, and `problems` explains why. Then `valid_run_policy` has the fields of its run
    policy that are valid, because an attempt may be running: the job was valid before an upgrade.
    """

    key: Key
    uid: str
    generation: int
    resource_version: str
    created: datetime
    deleted: datetime | None
    finalizers: tuple[str, ...]
    spec: JobSpec | None
    problems: tuple[str, ...]
    status: JobStatus
    valid_run_policy: RunPolicy

    @property
    def reference(self) -> Json:
        """An object reference, for events and owner references."""
        return {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "namespace": self.key.namespace,
            "name": self.key.name,
            "uid": self.uid,
        }


@dataclass(frozen=True, slots=True)
class CachedJob:
    """A job as cached. Two are equal if the same decision follows from them.

    Attributes:
        compressed: the job as JSON, without the parts that are not used and can be large. Most of what a job takes in
            memory is this text, which zlib reduces to a third.
        digest: of all fields except the progress that trainers report often, which no decision depends on.
        summary: what metrics need.
    """

    compressed: bytes = field(compare=False)
    digest: bytes
    summary: JobSummary = field(compare=False)

    @property
    def raw(self) -> bytes:
        """The job as JSON."""
        return zlib.decompress(self.compressed)


def cache_job(obj: Json) -> CachedJob:
    """What is cached of a listed job.

    All fields that are kept have a maximum length. A DeepSpeed configuration of that size has unknown keys, so the job
    is rejected without it too.
    """
    for unused in ("managedFields", "annotations", "labels"):
        obj["metadata"].pop(unused, None)
    deepspeed = part(obj, "spec", "training", "deepspeed")
    if len(to_json(deepspeed.get("config"))) > _MAX_CONFIG_BYTES:
        deepspeed["config"] = {f"(more than {_MAX_CONFIG_BYTES} bytes)": None}
    compressed, summary = zlib.compress(to_json(obj), _COMPRESSION_LEVEL), summarize_job(obj)
    obj["metadata"].pop("resourceVersion", None)
    status = part(obj, "status")
    for name in _PROGRESS_FIELDS:
        status.pop(name, None)
    part(status, "report").pop("time", None)
    return CachedJob(compressed, hashlib.blake2b(to_json(obj), digest_size=16).digest(), summary)


def read_job(obj: Json) -> Job:
    """Never raises for anything that a user can write: validation errors are returned in `problems`."""
    metadata = obj["metadata"]
    spec, problems = _read_spec(obj)
    return Job(
        key=Key(metadata["namespace"], metadata["name"]),
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        resource_version=metadata["resourceVersion"],
        created=_time(metadata["creationTimestamp"]),
        deleted=_time(metadata["deletionTimestamp"]) if metadata.get("deletionTimestamp") else None,
        finalizers=tuple(metadata.get("finalizers") or ()),
        spec=spec,
        problems=problems,
        status=parse_status(part(obj, "status")),
        valid_run_policy=spec.run_policy if spec else parse_leniently(RunPolicy, part(obj, "spec", "runPolicy"))[0],
    )


def _read_spec(obj: Json) -> tuple[JobSpec | None, tuple[str, ...]]:
    document = {key: obj[key] for key in ("apiVersion", "kind", "spec") if key in obj}
    name = {"name": obj["metadata"]["name"], "namespace": obj["metadata"]["namespace"]}
    try:
        return DreamBoothJob.model_validate({**document, "metadata": name}).spec, ()
    except ValidationError as error:
        return None, tuple(_issue_message(issue) for issue in error.errors(include_url=False))


def _issue_message(issue: ErrorDetails) -> str:
    """One pydantic error as "spec.training.steps: 0: Input should be greater than or equal to 1"."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in issue["loc"]).lstrip(".")
    if at := issue.get("ctx", {}).get("at"):
        path = f"{path}.{at}"
    value = "" if isinstance(issue["input"], dict | list) else f" {str(issue['input'])[:80]!r}:"
    return f"{path}:{value} {issue['msg']}"


@dataclass(frozen=True, slots=True)
class AnyRuntime(Generic[S]):
    """A runtime. `spec` is None if it is not valid, and `problems` explains why."""

    name: str
    spec: S | None
    problems: tuple[str, ...] = ()
    uid: str = ""
    generation: int = 0
    resource_version: str = field(default="", compare=False)
    finalizers: tuple[str, ...] = ()
    deleting: bool = False


@dataclass(frozen=True, slots=True)
class Runtime(AnyRuntime[RuntimeSpec]):
    """A DreamBoothRuntime."""


@dataclass(frozen=True, slots=True)
class LocalRuntime(AnyRuntime[LocalRuntimeSpec]):
    """A LocalDreamBoothRuntime."""


def read_runtime(obj: Json) -> Runtime:
    """Never raises: validation errors are returned in `problems`."""
    spec, problems = _read_runtime_spec(obj, RuntimeSpec)
    return Runtime(spec=spec, problems=problems, **_identity(obj))


def read_local_runtime(obj: Json) -> LocalRuntime:
    """As `read_runtime`. What users write of a local runtime is cached only up to a size."""
    if (size := len(to_json(obj.get("spec")))) > _MAX_LOCAL_RUNTIME_BYTES:
        rule = f"has {size} bytes, and at most {_MAX_LOCAL_RUNTIME_BYTES} are allowed"
        return LocalRuntime(spec=None, problems=(f"spec: {rule}; remove values",), **_identity(obj))
    spec, problems = _read_runtime_spec(obj, LocalRuntimeSpec)
    return LocalRuntime(spec=spec, problems=problems, **_identity(obj))


def _read_runtime_spec(obj: Json, model: type[S]) -> tuple[S | None, tuple[str, ...]]:
    try:
        return model.model_validate(obj.get("spec") or {}), ()
    except ValidationError as error:
        return None, tuple(_issue_message(issue) for issue in error.errors(include_url=False))


def _identity(obj: Json) -> dict[str, Any]:
    metadata = obj["metadata"]
    return {
        "name": metadata["name"],
        "uid": metadata.get("uid", ""),
        "generation": metadata.get("generation", 0),
        "resource_version": metadata.get("resourceVersion", ""),  # an answer to a dry run has none
        "finalizers": tuple(metadata.get("finalizers") or ()),
        "deleting": "deletionTimestamp" in metadata,
    }


@dataclass(frozen=True, slots=True)
class RayJob:
    """A RayJob, which is one attempt.

    Attributes:
        owner: name of the DreamBoothJob.
        deployment: status.jobDeploymentStatus.
        job: status.jobStatus, the status of the submitted Ray job.
        cluster: name of the RayCluster.
        job_sha256: digest of the job file that its pods mount.
    """

    name: str
    owner: str
    uid: str
    owner_uid: str
    deleting: bool
    suspended: bool
    deployment: str
    job: str
    reason: str
    message: str
    cluster: str
    job_sha256: str

    @property
    def has_started(self) -> bool:
        """Whether all its pods have started, so that they have mounted their ConfigMap."""
        return self.ended or self.deployment == "Running"

    @property
    def ended(self) -> bool:
        """Whether KubeRay has finished with it."""
        return self.deployment in ("Complete", "Failed", "ValidationFailed")


def read_ray_job(obj: Json) -> RayJob:
    """Parse a RayJob."""
    metadata, status = obj["metadata"], part(obj, "status")
    return RayJob(
        name=intern(metadata["name"]),
        owner=_job_of(obj),
        uid=metadata["uid"],
        owner_uid=_owner_uid(obj),
        deleting="deletionTimestamp" in metadata,
        suspended=bool(part(obj, "spec").get("suspend")),
        deployment=status.get("jobDeploymentStatus") or "",
        job=status.get("jobStatus") or "",
        reason=status.get("reason") or "",
        message=fit_message(status.get("message") or ""),
        cluster=intern(status.get("rayClusterName") or ""),
        job_sha256=part(metadata, "annotations").get(JOB_SHA256_ANNOTATION, ""),
    )


@dataclass(frozen=True, slots=True)
class RayCluster:
    """A RayCluster, which has the pods of one attempt.

    Attributes:
        owner: name of the DreamBoothJob.
        ray_job: name of the RayJob that created the cluster.
        head: name of the head pod.
        head_gone: whether the head pod no longer exists.
        trouble: why not all pods are ready.
    """

    name: str
    owner: str
    ray_job: str
    head: str
    head_ready: bool
    head_gone: bool
    provisioned: bool
    workers_ready: int
    workers_wanted: int
    trouble: str


def read_ray_cluster(obj: Json) -> RayCluster:
    """Parse a RayCluster."""
    metadata, status = obj["metadata"], part(obj, "status")
    conditions = {condition["type"]: condition for condition in parts(status, "conditions")}

    def is_true(kind: str) -> bool:
        return part(conditions, kind).get("status") == "True"

    failing = part(conditions, "ReplicaFailure") if is_true("ReplicaFailure") else part(conditions, "HeadPodReady")
    trouble = f"{failing.get('reason', '')}: {failing.get('message', '')}" if failing.get("message") else ""
    return RayCluster(
        name=intern(metadata["name"]),
        owner=_job_of(obj),
        ray_job=intern(part(metadata, "labels").get("ray.io/originated-from-cr-name", "")),
        head=intern(part(status, "head").get("podName") or ""),
        head_ready=is_true("HeadPodReady"),
        head_gone=part(conditions, "HeadPodReady").get("reason") == "HeadPodNotFound",
        provisioned=is_true("RayClusterProvisioned"),
        workers_ready=status.get("readyWorkerReplicas") or 0,
        workers_wanted=status.get("desiredWorkerReplicas") or 0,
        trouble="" if trouble.endswith(": ") else one_line(trouble),
    )


@dataclass(frozen=True, slots=True)
class EraseJob:
    """The batch Job that deletes the data of a deleted job."""

    owner: str
    owner_uid: str
    succeeded: bool
    failed: bool
    message: str = ""


def read_erase_job(obj: Json) -> EraseJob:
    """Parse a batch Job."""
    ended = {c["type"]: c for c in parts(part(obj, "status"), "conditions") if c["status"] == "True"}
    failed = part(ended, "Failed")
    return EraseJob(
        owner=_job_of(obj),
        owner_uid=_owner_uid(obj),
        succeeded="Complete" in ended,
        failed=bool(failed),
        message=str(failed.get("message", "")),
    )


@dataclass(frozen=True, slots=True)
class Observed:
    """The children of one job, as cached.

    `create_failure` is set if the API server has rejected a child of the open attempt. `reports_since` is when the
    progress deadline began to count (see `policies.progress_deadline`). `queue_reason` is why the queue has not
    admitted the open attempt. `progress_ca` is what its trainer must trust to report, in PEM.
    """

    ray_jobs: tuple[RayJob, ...] = ()
    clusters: tuple[RayCluster, ...] = ()
    erase: EraseJob | None = None
    create_failure: Failure | None = None
    pods: tuple[Pod, ...] = ()
    reports_since: datetime | None = None
    queue_reason: str = ""
    progress_ca: str = ""

    def pods_of(self, attempt: int) -> list[Pod]:
        """The pods of an attempt, the head first."""
        pods = (pod for pod in self.pods if pod.attempt == str(attempt))
        return sorted(pods, key=lambda pod: (not pod.head, pod.name))

    def without_others(self, owner_uid: str) -> Observed:
        """The same without RayJobs that this job does not own and that stay: nothing waits for their end.

        One that is being deleted may belong to a deleted job of the same name, whose pods use the same folder.
        """
        own = tuple(r for r in self.ray_jobs if r.owner_uid == owner_uid or r.deleting)
        return replace(self, ray_jobs=own)

    def ray_job(self, name: str | None) -> RayJob | None:
        """The RayJob of this name, if it exists."""
        return next((r for r in self.ray_jobs if r.name == name), None)

    def cluster_of(self, ray_job: str) -> RayCluster | None:
        """The RayCluster of a RayJob, if it exists."""
        return next((c for c in self.clusters if c.ray_job == ray_job), None)


def _job_of(obj: Json) -> str:
    """The name of the job that a child belongs to; empty if it has none."""
    return intern(part(obj, "metadata", "labels").get(JOB_LABEL, ""))


def _owner_uid(obj: Json) -> str:
    owners = parts(part(obj, "metadata"), "ownerReferences")
    return intern(owners[0]["uid"]) if owners else ""


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
