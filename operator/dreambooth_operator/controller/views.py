"""What the controller sees: a job, its runtime and its children, read once from what the server sent.

Pure and small: of a RayJob only what a decision needs is kept, so that ten thousand cost little.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import datetime

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Failure, JobStatus, fit_message
from dreambooth_operator.machinery.resources import Json, Key, part, parts
from dreambooth_operator.resources import JOB_LABEL, JOBS


@dataclass(frozen=True, slots=True)
class Job:
    """A DreamBoothJob. `spec` is None where it does not hold together; `problems` says why."""

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

    @property
    def reference(self) -> Json:
        """As events and owner references name it."""
        return {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "namespace": self.key.namespace,
            "name": self.key.name,
            "uid": self.uid,
        }


def trim_job(obj: Json) -> bytes:
    """What is kept of a listed job: all but the bulk that only the server needs."""
    metadata = obj["metadata"]
    metadata.pop("managedFields", None)
    metadata.get("annotations", {}).pop("kubectl.kubernetes.io/last-applied-configuration", None)
    return json.dumps(obj, separators=(",", ":")).encode()


def read_job(obj: Json) -> Job:
    """Never raises for what a user can write: what does not hold together lands in `problems`."""
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
        status=_read_status(part(obj, "status")),
    )


def _read_spec(obj: Json) -> tuple[JobSpec | None, tuple[str, ...]]:
    whole = {key: obj[key] for key in ("apiVersion", "kind", "spec") if key in obj}
    name = {"name": obj["metadata"]["name"], "namespace": obj["metadata"]["namespace"]}
    try:
        return DreamBoothJob.model_validate({**whole, "metadata": name}).spec, ()
    except ValidationError as error:
        return None, tuple(_sentence(issue) for issue in error.errors(include_url=False))


def _sentence(issue: ErrorDetails) -> str:
    """One pydantic error as "spec.training.steps: 0: Input should be greater than or equal to 1"."""
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in issue["loc"]).lstrip(".")
    if at := issue.get("ctx", {}).get("at"):
        path = f"{path}.{at}"
    value = "" if isinstance(issue["input"], dict | list) else f" {str(issue['input'])[:80]!r}:"
    return f"{path}:{value} {issue['msg']}"


def _read_status(raw: Json) -> JobStatus:
    """A status that somebody has broken by hand is read as if it were empty, and then written anew."""
    try:
        return JobStatus.model_validate(raw)
    except ValidationError:
        return JobStatus()


@dataclass(frozen=True, slots=True)
class Runtime:
    """A DreamBoothRuntime."""

    name: str
    spec: RuntimeSpec | None
    problems: tuple[str, ...] = ()


def read_runtime(obj: Json) -> Runtime:
    """Never raises: what does not hold together lands in `problems`."""
    name = obj["metadata"]["name"]
    try:
        return Runtime(name, RuntimeSpec.model_validate(obj.get("spec") or {}))
    except ValidationError as error:
        return Runtime(name, None, tuple(_sentence(issue) for issue in error.errors(include_url=False)))


@dataclass(frozen=True, slots=True)
class RayJob:
    """One attempt, as KubeRay tells it.

    `owner` is the DreamBoothJob's name; `deployment`, `job` and `reason` are KubeRay's own words.
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

    @property
    def ended(self) -> bool:
        """Whether KubeRay will do no more about it."""
        return self.deployment in ("Complete", "Failed", "ValidationFailed")


def read_ray_job(obj: Json) -> RayJob:
    """Pick what counts from a RayJob."""
    metadata, status = obj["metadata"], part(obj, "status")
    owners = parts(metadata, "ownerReferences")
    return RayJob(
        name=metadata["name"],
        owner=_job_of(obj),
        uid=metadata["uid"],
        owner_uid=owners[0]["uid"] if owners else "",
        deleting="deletionTimestamp" in metadata,
        suspended=bool(part(obj, "spec").get("suspend")),
        deployment=status.get("jobDeploymentStatus") or "",
        job=status.get("jobStatus") or "",
        reason=status.get("reason") or "",
        message=fit_message(status.get("message") or ""),
        cluster=status.get("rayClusterName") or "",
    )


@dataclass(frozen=True, slots=True)
class RayCluster:
    """The pods of an attempt.

    `head` is the head pod's name, `head_gone` says that there is none any more, `trouble` why the cluster
    is not whole.
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
    """Pick what counts from a RayCluster."""
    metadata, status = obj["metadata"], part(obj, "status")
    conditions = {condition["type"]: condition for condition in parts(status, "conditions")}

    def holds(kind: str) -> bool:
        return part(conditions, kind).get("status") == "True"

    failing = part(conditions, "ReplicaFailure") if holds("ReplicaFailure") else part(conditions, "HeadPodReady")
    trouble = f"{failing.get('reason', '')}: {failing.get('message', '')}" if failing.get("message") else ""
    return RayCluster(
        name=metadata["name"],
        owner=_job_of(obj),
        ray_job=part(metadata, "labels").get("ray.io/originated-from-cr-name", ""),
        head=part(status, "head").get("podName") or "",
        head_ready=holds("HeadPodReady"),
        head_gone=part(conditions, "HeadPodReady").get("reason") == "HeadPodNotFound",
        provisioned=holds("RayClusterProvisioned"),
        workers_ready=status.get("readyWorkerReplicas") or 0,
        workers_wanted=status.get("desiredWorkerReplicas") or 0,
        trouble="" if trouble.endswith(": ") else trouble[:1000],
    )


@dataclass(frozen=True, slots=True)
class EraseJob:
    """The batch Job that removes what a deleted job made."""

    owner: str
    succeeded: bool
    failed: bool
    message: str = ""


def read_erase_job(obj: Json) -> EraseJob:
    """Pick what counts from a batch Job."""
    ended = {c["type"]: c for c in parts(part(obj, "status"), "conditions") if c["status"] == "True"}
    failed = part(ended, "Failed")
    return EraseJob(_job_of(obj), "Complete" in ended, bool(failed), str(failed.get("message", "")))


@dataclass(frozen=True, slots=True)
class Observed:
    """The children of one job, by name, as the caches have them.

    `refusal` is what the API server said when it would not take a child of the open attempt.
    """

    ray_jobs: tuple[RayJob, ...] = ()
    clusters: tuple[RayCluster, ...] = ()
    erase: EraseJob | None = None
    refusal: Failure | None = None

    def ray_job(self, name: str | None) -> RayJob | None:
        """The RayJob of this name, if it is there."""
        return next((r for r in self.ray_jobs if r.name == name), None)

    def cluster_of(self, ray_job: str) -> RayCluster | None:
        """The RayCluster that a RayJob made, if it is there."""
        return next((c for c in self.clusters if c.ray_job == ray_job), None)


def _job_of(obj: Json) -> str:
    """The name of the job that a child belongs to; empty if it is nobody's."""
    return part(obj, "metadata", "labels").get(JOB_LABEL, "")


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text)
