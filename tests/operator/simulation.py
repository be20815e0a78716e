"""A simulated cluster that carries out decisions one action at a time, so that a test can stop anywhere.

It follows the rules of the API server that the controller relies on (a status write is a compare-and-swap, names are
unique, a foreground deletion ends after the deletion of the pods) and the behavior of KubeRay.
"""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from dreambooth_api.merge import merge
from dreambooth_api.progress import ProgressMessage
from dreambooth_api.runtime import Bounds, RuntimeSpec, Storage
from dreambooth_api.status import Failure, JobStatus, ReportedStatus, TrainerPhase
from dreambooth_operator.controller.actions import (
    Action,
    Create,
    Decision,
    Delete,
    DeleteJob,
    SetFinalizer,
    WriteStatus,
)
from dreambooth_operator.controller.children.attempt import attempt_children, attempt_config_map
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.lifecycle import check_transition
from dreambooth_operator.controller.observed import (
    EraseJob,
    Job,
    Observed,
    RayCluster,
    RayJob,
    Runtime,
    read_job,
    read_ray_job,
)
from dreambooth_operator.controller.observed_pods import Pod
from dreambooth_operator.controller.resolve import ResolutionError, ResolvedJob, resolve
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, Resource
from dreambooth_operator.resources import BATCH_JOBS, RAY_JOBS

SETTINGS = Settings(retry_seconds=10, head_grace_seconds=60, pods_ready_seconds=200)
BOUNDS = Bounds(outputs=["s3://b"])
RUNTIME = Runtime("default", RuntimeSpec(image="trainer:1", storage=Storage(claim_name="work"), bounds=BOUNDS))
START = datetime(2026, 11, 24, 6, 0, tzinfo=UTC)


class StaleError(Exception):
    """The job on the server has changed since it was observed."""


def job_with(spec: dict[str, Any], name: str = "dog") -> Job:
    """A job with this spec, whose subject and output have defaults."""
    return read_job(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {
                "name": name,
                "namespace": "team",
                "uid": "u1",
                "generation": 1,
                "resourceVersion": "1",
                "creationTimestamp": "2026-11-24T06:00:00Z",
            },
            "spec": {"subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"}, **spec},
        }
    )


def make_job(*, erase: bool = False, **run_policy: object) -> Job:
    output = {"uri": "s3://b/out", "deletionPolicy": "Delete" if erase else "Retain"}
    return job_with({"output": output, "runPolicy": run_policy})


def attempt_objects(job: Job, attempt: int, resolved: ResolvedJob) -> list[tuple[Resource, Json]]:
    """All children of an attempt, with the ConfigMap that is created once the RayJob exists."""
    made = attempt_children(job, attempt, resolved, SETTINGS)
    obj = made[-1][1]
    ray_job = read_ray_job({**obj, "metadata": {**obj["metadata"], "uid": "r1"}})
    config_map = attempt_config_map(job, attempt, resolved, ray_job, "a certificate")
    assert config_map
    return [(CONFIG_MAPS, config_map), *made]


@dataclasses.dataclass
class Snapshot:
    """What a controller has observed; it may be stale."""

    job: Job
    observed: Observed
    resolution: ResolvedJob | ResolutionError
    now: datetime

    def decide(self) -> Decision:
        return decide(self.job, self.resolution, self.observed, self.now, SETTINGS)


class World:
    """One job, its children and the current time."""

    def __init__(self, job: Job, runtime: Runtime | None = RUNTIME) -> None:
        self.job: Job | None = job
        self.runtime = runtime
        self.now = START
        self.ray_jobs: dict[str, RayJob] = {}
        self.clusters: dict[str, RayCluster] = {}
        self.erase: EraseJob | None = None
        self.config_maps: dict[str, str] = {}  # uid of the owner by name
        self.pods: list[Pod] = []
        self.created: list[str] = []
        self.writes = 0
        self.events: list[str] = []
        self.messages: set[tuple[str, str]] = set()  # reason and message of all events
        self._uids = 0

    # --- the controller

    def observe(self) -> Snapshot:
        assert self.job
        return Snapshot(
            self.job,
            Observed(tuple(self.ray_jobs.values()), tuple(self.clusters.values()), self.erase, pods=tuple(self.pods)),
            resolve(self.job, self.runtime, ["default"] if self.runtime else []),
            self.now,
        )

    def reconcile(self, max_actions: int | None = None) -> int:
        """Observe, decide and act until neither the status nor a RayJob changes. `max_actions` interrupts that."""
        done = 0
        for _ in range(8):
            if self.job is None:
                return done
            snapshot = self.observe()
            decision = snapshot.decide()
            written, ray_jobs = False, len(self.created)
            for action in decision.actions:
                if max_actions is not None and done >= max_actions:
                    return done
                self.act(snapshot, action, first=not written)
                written |= isinstance(action, WriteStatus)
                done += 1
            if not written and ray_jobs == len(self.created):
                return done
        raise AssertionError("the status keeps changing")

    def act(self, snapshot: Snapshot, action: Action, *, first: bool) -> None:
        """Carry out one action as the reconciler does."""
        if self.job is None:
            return
        match action:
            case WriteStatus(status, events):
                self._check(snapshot)
                check_transition(self.job.status.phase, status.phase)
                self._replace(status=status)
                self.writes += 1
                self.events += [event.reason for event in events]
                self.messages |= {(event.reason, event.message) for event in events}
            case Create(resource, obj):
                if first:
                    self._check(snapshot)
                if resource is RAY_JOBS:
                    self._create_ray_job(obj)
                elif resource is CONFIG_MAPS:
                    self.config_maps[obj["metadata"]["name"]] = obj["metadata"]["ownerReferences"][0]["uid"]
                elif resource is BATCH_JOBS and self.erase is None:
                    self.erase = EraseJob("dog", "u1", succeeded=False, failed=False)
            case Delete(resource, key, uid):
                if resource is RAY_JOBS and (old := self.ray_jobs.get(key.name)) and old.uid == uid:
                    self.ray_jobs[key.name] = dataclasses.replace(old, deleting=True)
                elif resource is BATCH_JOBS:
                    self.erase = None
            case SetFinalizer(present):
                if first:
                    self._check(snapshot)
                finalizers = ("dreambooth.dev/erase",) if present else ()
                self._replace(finalizers=finalizers)
                if self.job.deleted and not finalizers:
                    self.job = None
            case DeleteJob():
                self.delete()

    def _create_ray_job(self, obj: dict[str, object]) -> None:
        metadata = obj["metadata"]
        assert isinstance(metadata, dict)
        if metadata["name"] in self.ray_jobs:
            return
        self._uids += 1
        made = read_ray_job({**obj, "metadata": {**metadata, "uid": f"r{self._uids}"}})
        self.ray_jobs[made.name] = made
        self.created.append(made.name)

    def _check(self, snapshot: Snapshot) -> None:
        assert self.job
        if snapshot.job.resource_version != self.job.resource_version:
            raise StaleError

    def _replace(self, **fields: object) -> None:
        assert self.job
        version = str(int(self.job.resource_version) + 1)
        self.job = dataclasses.replace(self.job, resource_version=version, **fields)

    # --- everybody else

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)

    def set_policy(self, **fields: object) -> None:
        assert self.job
        assert self.job.spec
        policy = self.job.spec.run_policy.model_copy(update=fields)
        spec = self.job.spec.model_copy(update={"run_policy": policy})
        self._replace(spec=spec, generation=self.job.generation + 1)

    def delete(self) -> None:
        """A user deletes the job. Without a finalizer it is gone at once, and so are its children."""
        if self.job and self.job.finalizers:
            self._replace(deleted=self.now)
        else:
            self.job = None
            self.ray_jobs.clear()

    def report(
        self,
        phase: TrainerPhase | None = None,
        failure: Failure | None = None,
        *,
        attempt: int | None = None,
        **fields: object,
    ) -> bool:
        """The trainer of an attempt (default: the latest) reports. Returns whether the status server accepts it."""
        if self.job is None or self.job.deleted or attempt not in (None, self.status.attempts):
            return False
        given = {"phase": phase, "failure": failure and failure.model_dump(), **fields}
        report = ProgressMessage.model_validate({key: value for key, value in given.items() if value is not None})
        merged = merge(self.status, report, self.status.attempts, self.now)
        update = {name: getattr(merged, name) for name in ReportedStatus.model_fields}
        self._replace(status=self.status.model_copy(update=update))
        return True

    def report_all(self, *, attempt: int | None = None) -> bool:
        """The last report of a trainer that has published its model."""
        return self.report(
            TrainerPhase.PUBLISH,
            attempt=attempt,
            step=10,
            steps=10,
            class_images={"wanted": 2, "generated": 2},
            scores={"dino": 0.7},
            output={"uri": "s3://b/out/model", "digest": "sha256:0"},
        )

    def kuberay(self, name: str, **fields: object) -> None:
        """KubeRay updates the status of a RayJob and its RayCluster."""
        made = dataclasses.replace(self.ray_jobs[name], **fields)
        self.ray_jobs[name] = made
        if made.deployment == "Running":
            self.config_maps[name] = made.uid  # its pods wait for it
            self.clusters[name] = RayCluster(
                name=f"{name}-c",
                owner="dog",
                ray_job=name,
                head=f"{name}-head",
                head_ready=True,
                head_gone=False,
                provisioned=True,
                workers_ready=1,
                workers_wanted=1,
                trouble="",
            )
        elif made.ended:
            self.clusters.pop(name, None)

    def collect(self) -> None:
        """The pods of RayJobs that are being deleted are gone."""
        for name in [name for name, ray_job in self.ray_jobs.items() if ray_job.deleting]:
            del self.ray_jobs[name]
            self.clusters.pop(name, None)

    @property
    def live(self) -> list[RayJob]:
        """RayJobs that may have pods."""
        return [ray_job for ray_job in self.ray_jobs.values() if not ray_job.ended]

    @property
    def status(self) -> JobStatus:
        assert self.job
        return self.job.status

    @property
    def ray_job(self) -> str:
        """The name of the latest attempt's RayJob."""
        assert self.status.ray_job_name
        return self.status.ray_job_name

    def succeed(self) -> None:
        self.kuberay(self.ray_job, deployment="Complete", job="SUCCEEDED")

    def fail(self, exit_code: int = 1) -> None:
        message = f"Job entrypoint command failed with exit code {exit_code}, last available logs: ..."
        self.kuberay(self.ray_job, deployment="Failed", job="FAILED", reason="AppFailed", message=message)
