"""The reconciler: mirrors the objects that a decision needs, and carries decisions out.

Caches may be stale, so irreversible steps are checked against the API server first: a RayJob counts as gone only if the
server does not have it, and is created only if the job has not changed since it was observed.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol, TypeVar

from pydantic_core import from_json

from dreambooth_api.status import CONTROL_FIELDS, TERMINAL, Failure, JobStatus, Phase
from dreambooth_operator.controller.actions import Create, Decision, Delete, DeleteJob, SetFinalizer, WriteStatus
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.names import erase_name
from dreambooth_operator.controller.observed import (
    Job,
    Observed,
    Runtime,
    read_erase_job,
    read_job,
    read_ray_cluster,
    read_ray_job,
    read_runtime,
    trim_job,
)
from dreambooth_operator.controller.observed_pods import Pod, explain_by_events, needs_event, read_pod
from dreambooth_operator.controller.ownership import COMPARED, controller_uid, name_conflict
from dreambooth_operator.controller.policies.retries import QUOTA_EXCEEDED
from dreambooth_operator.controller.queueing.workload import JOB_UID_LABEL, WORKLOADS, waiting_reason
from dreambooth_operator.controller.resolve import choose_runtime, resolve
from dreambooth_operator.controller.runtime_protection import RECOUNT_SECONDS, RuntimeProtection
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.events import Event, Recorder
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import EVENTS, PODS, Json, Key, Resource, key_of
from dreambooth_operator.resources import (
    BATCH_JOBS,
    ERASE_FINALIZER,
    JOB_LABEL,
    JOBS,
    RAY_CLUSTERS,
    RAY_JOBS,
    RUNTIMES,
)

log = logging.getLogger(__name__)
FIELD_MANAGER = "dreambooth-controller"
# Each status write is followed by another decision. More writes in a row than this indicate a loop.
_MAX_PASSES = 8
_MAX_EVENTS = 50  # of one pod


class _ChildRejectedError(Exception):
    """The API server has rejected a child."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Owned(Protocol):
    @property
    def owner(self) -> str: ...


T = TypeVar("T", bound=_Owned)


class ChildIndex:
    """The children of each job, by owner. A change of a child enqueues its job."""

    def __init__(self, enqueue: Callable[[Key], None]) -> None:
        self._enqueue = enqueue
        self._of: dict[Key, set[Key]] = defaultdict(set)
        self._owner: dict[Key, Key] = {}

    def changed(self, child: Key, child_object: _Owned | None) -> None:
        """Record that a child was added or changed, or deleted if `child_object` is None."""
        owner = Key(child.namespace, child_object.owner) if child_object else self._owner.get(child)
        if owner is None:
            return
        if child_object:
            self._owner[child] = owner
            self._of[owner].add(child)
        else:
            del self._owner[child]
            self._of[owner].discard(child)
            if not self._of[owner]:
                del self._of[owner]
        self._enqueue(owner)

    def of(self, owner: Key) -> list[Key]:
        """The keys of the children of `owner`, sorted."""
        return sorted(self._of.get(owner, ()))


def _watch_children(
    api: Api, resource: Resource, project: Callable[[Json], T], index: ChildIndex, namespace: str
) -> Reflector[T]:
    """A cache of the objects of one kind that have the label of a job. Changes go to the index."""

    def changed(key: Key) -> None:
        index.changed(key, children.cache.get(key))

    children = Reflector(api, resource, project=project, on_change=changed, namespace=namespace, selector=JOB_LABEL)
    return children


class Reconciler:
    """Reconciles DreamBoothJobs. `reflectors` fill `queue`; the caller runs them."""

    def __init__(self, api: Api, settings: Settings, *, now: Callable[[], datetime]) -> None:
        self._api = api
        self._settings = settings
        self._now = now
        self._started = now()
        self._recorder = Recorder(api, "dreambooth-operator")
        self.queue: WorkQueue[Key] = WorkQueue()
        self.on_event: Callable[[Event], None] = lambda _: None
        self._ray_jobs_of, self._clusters_of, self._erase_of, self._pods_of = (
            ChildIndex(self.queue.add) for _ in range(4)
        )
        first, *others = settings.watch_namespaces or ("",)
        self._jobs: Reflector[bytes] = Reflector(
            api, JOBS, project=trim_job, on_change=self._job_changed, namespace=first
        )
        self._runtimes: Reflector[Runtime] = Reflector(
            api, RUNTIMES, project=read_runtime, on_change=self._runtime_changed
        )
        self._protection = RuntimeProtection(api, self._recorder, self._runtimes.cache, self._jobs.cache)
        self._ray_jobs = _watch_children(api, RAY_JOBS, read_ray_job, self._ray_jobs_of, first)
        self._clusters = _watch_children(api, RAY_CLUSTERS, read_ray_cluster, self._clusters_of, first)
        self._erase_jobs = _watch_children(api, BATCH_JOBS, read_erase_job, self._erase_of, first)
        self._pods = _watch_children(api, PODS, read_pod, self._pods_of, first)
        namespaced = (self._jobs, self._ray_jobs, self._clusters, self._erase_jobs, self._pods)
        more = [reflector.also_in(namespace) for reflector in namespaced for namespace in others]
        self.reflectors = (self._runtimes, *namespaced, *more)

    @property
    def is_synced(self) -> bool:
        """Whether all caches have been filled once."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    @property
    def job_count(self) -> int:
        """Number of cached jobs."""
        return len(self._jobs.cache)

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one job, or a runtime, whose key has no namespace.

        Returns after how many seconds to do so again; None for "on the next change".
        """
        if not key.namespace:
            await self._protection.reconcile(key)
            return None
        raw = self._jobs.cache.get(key)
        if raw is None:
            return None
        job = read_job(from_json(raw))
        create_failure: Failure | None = None
        for _ in range(_MAX_PASSES):
            decision = await self._decide(job, create_failure)
            try:
                written = await self._carry_out(job, decision)
            except _ChildRejectedError as rejected:
                create_failure = rejected.failure
                continue
            except ApiError as error:
                if error.is_not_found:  # deleted meanwhile; the watch will report it
                    return None
                raise
            if written is None:
                return decision.requeue_after_seconds
            job, create_failure = written, None
        log.warning("%s: %d status writes in a row", key, _MAX_PASSES)
        return 1.0

    async def _decide(self, job: Job, create_failure: Failure | None) -> Decision:
        name = choose_runtime(job.spec) if job.spec else ""
        runtimes = {key.name for key in self._runtimes.cache}
        resolution = resolve(job, self._runtimes.cache.get(Key("", name)), sorted(runtimes))
        observed = replace(await self._observe(job), create_failure=create_failure)
        return decide(job, resolution, observed, self._now(), self._settings)

    async def _observe(self, job: Job) -> Observed:
        ray_jobs = [self._ray_jobs.cache[key] for key in self._ray_jobs_of.of(job.key)]
        clusters = [self._clusters.cache[key] for key in self._clusters_of.of(job.key)]
        name = job.status.ray_job_name
        if name and job.status.phase not in TERMINAL and not any(r.name == name for r in ray_jobs):
            # The cache may not contain yet what another process has created.
            try:
                ray_jobs.append(read_ray_job(await self._api.get(RAY_JOBS, Key(job.key.namespace, name))))
            except ApiError as error:
                if not error.is_not_found:
                    raise
        erase = self._erase_jobs.cache.get(Key(job.key.namespace, erase_name(job)))
        pods = await self._observe_pods(job)
        reason = await self._queue_reason(job)
        return Observed(
            tuple(ray_jobs), tuple(clusters), erase, pods=pods, reports_since=self._started, queue_reason=reason
        )

    async def _queue_reason(self, job: Job) -> str:
        """Why Kueue has not admitted the RayJob; empty if that is not known, because it is only an explanation."""
        uid = job.status.ray_job_uid
        if job.status.phase is not Phase.QUEUED or uid is None:
            return ""
        query = {"labelSelector": f"{JOB_UID_LABEL}={uid}", "limit": "1"}
        try:
            found = await self._api.request("GET", WORKLOADS.path(job.key.namespace), query=query)
        except ApiError as error:
            log.debug("%s: the reason of its queue is not known: %s", job.key, error)
            return ""
        return waiting_reason(found["items"])

    async def _observe_pods(self, job: Job) -> tuple[Pod, ...]:
        """The pods of a job. Events are requested for one pod only, because all pods mount the same volumes."""
        pods = [self._pods.cache[key] for key in self._pods_of.of(job.key)]
        waiting = next((pod for pod in pods if needs_event(pod)), None)
        if waiting is None or job.status.phase is not Phase.STARTING:
            return tuple(pods)
        selector = {"fieldSelector": f"involvedObject.uid={waiting.uid}", "limit": str(_MAX_EVENTS)}
        events = await self._api.request("GET", EVENTS.path(job.key.namespace), query=selector)
        return tuple(explain_by_events(pod, events["items"]) if pod is waiting else pod for pod in pods)

    async def _carry_out(self, job: Job, decision: Decision) -> Job | None:
        """Execute the actions in order. Returns the written job if the status was written, else None."""
        written: Job | None = None
        fresh = False
        for action in decision.actions:
            match action:
                case WriteStatus(status, events):
                    written = read_job(await self._write_status(job, status))
                    fresh = True
                    for event in events:
                        self.on_event(event)
                        await self._recorder.record(job.reference, event)
                case Create(resource, obj):
                    if not fresh:
                        await self._check_fresh(job)
                        fresh = True
                    try:
                        await self._api.create(resource, obj)
                    except ApiError as error:
                        if error.status in (400, 403, 422):
                            raise _ChildRejectedError(_rejection(resource, error)) from error
                        if not error.is_already_exists:
                            raise
                        await self._check_existing(resource, obj)
                case Delete(resource, key, uid):
                    if resource in COMPARED and not await self._owns(job, resource, key):
                        continue
                    await self._api.delete(resource, key, uid=uid, foreground=True)
                case SetFinalizer(present):
                    await self._set_finalizer(written or job, present=present)
                case DeleteJob():
                    await self._api.delete(JOBS, job.key, uid=job.uid)
        return written

    async def _write_status(self, job: Job, status: JobStatus) -> Json:
        """Apply the controller's fields of the status. Raises a conflict if the job has changed since it was read."""
        content = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        obj: Json = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {**_name(job), "resourceVersion": job.resource_version},
            "status": {name: value for name, value in content.items() if name in CONTROL_FIELDS},
        }
        return await self._api.apply(JOBS, obj, manager=FIELD_MANAGER, subresource="status")

    async def _check_fresh(self, job: Job) -> None:
        """Raise a conflict if the job on the server is not the observed one."""
        metadata = (await self._api.get(JOBS, job.key))["metadata"]
        if metadata["uid"] != job.uid or metadata["resourceVersion"] != job.resource_version:
            raise ApiError(409, "Conflict", "the job changed since it was read")

    async def _check_existing(self, resource: Resource, wanted: Json) -> None:
        """Raise if the object with the name of a child is not that child."""
        if resource not in COMPARED:
            return
        existing = await self._api.get(resource, key_of(wanted))
        if failure := name_conflict(resource, wanted, existing):
            raise _ChildRejectedError(failure)

    async def _owns(self, job: Job, resource: Resource, key: Key) -> bool:
        """Whether a child of this name exists and belongs to the job."""
        try:
            return controller_uid(await self._api.get(resource, key)) == job.uid
        except ApiError as error:
            if error.is_not_found:
                return False
            raise

    async def _set_finalizer(self, job: Job, *, present: bool) -> None:
        finalizers = [f for f in job.finalizers if f != ERASE_FINALIZER] + ([ERASE_FINALIZER] if present else [])
        metadata: Json = {"finalizers": finalizers, "resourceVersion": job.resource_version}
        await self._api.merge(JOBS, job.key, {"metadata": metadata})

    def _job_changed(self, job: Key) -> None:
        """Enqueue a job, and the runtimes that wait for the end of their jobs."""
        self.queue.add(job)
        for runtime in self._protection.deleting():
            self.queue.add_after(runtime, RECOUNT_SECONDS)

    def _runtime_changed(self, runtime: Key) -> None:
        """Enqueue a runtime and all jobs that have not finished, because any of them may use it."""
        self.queue.add(runtime)
        for key, raw in self._jobs.cache.items():
            if b'"phase":"Succeeded"' not in raw and b'"phase":"Failed"' not in raw:
                self.queue.add(key)


def _rejection(resource: Resource, error: ApiError) -> Failure:
    """An invalid child stays invalid; one that is forbidden, for example by a quota, can succeed later."""
    message = f"The API server rejected the {resource.kind}: {error.message}"
    if error.status == 403 and "exceeded quota" in error.message:
        remedy = "The job waits until the ResourceQuota has room, and starts automatically."
        return Failure(reason=QUOTA_EXCEEDED, message=f"{message}. {remedy}")
    return Failure(reason=f"{resource.kind}Refused", message=message, retryable=error.status == 403)


def _name(job: Job) -> Json:
    return {"name": job.key.name, "namespace": job.key.namespace}
