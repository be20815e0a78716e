"""The reconciler: mirrors the objects that a decision needs, and carries decisions out.

Caches may be stale, so irreversible steps are checked against the API server first: a RayJob counts as gone only if the
server does not have it, and is created only if the job has not changed since it was observed. Two answers of the server
make a separate check unnecessary:
- The response to a status write is the job at that moment, as a GET would return it.
- No other process can have created the RayJob of an attempt that this one has just opened: its name follows from the
  attempt. An object that somebody created beforehand under that name is detected by the creation, which fails.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby

from pydantic_core import from_json

from dreambooth_api.status import CONTROL_FIELDS, TERMINAL, Failure, JobStatus, Phase
from dreambooth_operator.controller.actions import (
    Action,
    Create,
    Decision,
    Delete,
    DeleteJob,
    SetFinalizer,
    WriteStatus,
)
from dreambooth_operator.controller.child_index import ChildIndex, watch_children
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.failures import rejected_child
from dreambooth_operator.controller.names import erase_name
from dreambooth_operator.controller.observed import (
    CHILD_FIELDS,
    RAY_JOB_FIELDS,
    CachedJob,
    Job,
    Observed,
    RayJob,
    cache_job,
    read_erase_job,
    read_job,
    read_ray_cluster,
    read_ray_job,
)
from dreambooth_operator.controller.observed_pods import POD_FIELDS, Pod, explain_by_events, needs_event, read_pod
from dreambooth_operator.controller.ownership import COMPARED, controller_uid, name_conflict
from dreambooth_operator.controller.queueing.workload import JOB_UID_LABEL, WORKLOADS, waiting_reason
from dreambooth_operator.controller.runtimes import Runtimes
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.controller.summary import JobObserver
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.events import Event, Recorder
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import (
    EVENTS,
    NETWORK_POLICIES,
    PODS,
    SERVICE_ACCOUNTS,
    Json,
    Key,
    Resource,
    key_of,
)
from dreambooth_operator.resources import BATCH_JOBS, ERASE_FINALIZER, JOBS, RAY_CLUSTERS, RAY_JOBS

log = logging.getLogger(__name__)
FIELD_MANAGER = "dreambooth-controller"
# Each status write is followed by another decision. More writes in a row than this indicate a loop.
_MAX_PASSES = 8
_MAX_EVENTS = 50  # of one pod
# Children that do not need one another, so they are created concurrently.
_INDEPENDENT = (SERVICE_ACCOUNTS, NETWORK_POLICIES)
# How long the cache may lack a status write of this process before it is trusted nevertheless.
_MAX_BEHIND_SECONDS = 10.0
_BEHIND_POLL_SECONDS = 1.0


class _ChildRejectedError(Exception):
    """The API server has rejected a child."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


@dataclass
class _Known:
    """What a reconciliation knows and the caches may not contain yet.

    Attributes:
        fresh: whether the job is the response to a status write, and not from the cache.
        opened: whether this reconciliation has opened the attempt.
        created: the RayJob that this reconciliation has created.
        rejected: why the API server has rejected a child.
    """

    fresh: bool = False
    opened: bool = False
    created: RayJob | None = None
    rejected: Failure | None = None


class Reconciler:
    """Reconciles DreamBoothJobs. `reflectors` fill `queue`; the caller runs them.

    `progress_ca` returns the certificates by which new trainers verify the status server, in PEM. `reports_since` is
    when that server began to receive reports, or this process to lead: now, unless the caller sets it.
    """

    def __init__(
        self, api: Api, settings: Settings, *, now: Callable[[], datetime], progress_ca: Callable[[], str]
    ) -> None:
        self._api = api
        self._settings = settings
        self._now = now
        self.reports_since = now()
        self._progress_ca = progress_ca
        self._recorder = Recorder(api, "dreambooth-operator")
        self.queue: WorkQueue[Key] = WorkQueue()
        self.on_event: Callable[[Event], None] = lambda _: None
        self.observer = JobObserver()
        self._ray_jobs_of, self._clusters_of, self._erase_of, self._pods_of = (
            ChildIndex(self.queue.add) for _ in range(4)
        )
        first, *others = settings.watch_namespaces or ("",)
        # The resource version of the last status write of a job, until the cache contains it or the time has passed.
        self._written: dict[Key, tuple[int, float]] = {}
        self._not_written: dict[Key, datetime] = {}
        self._jobs: Reflector[CachedJob] = Reflector(
            api, JOBS, project=cache_job, on_change=self._job_changed, namespace=first
        )
        self.job_cache = self._jobs.cache
        self._runtimes = Runtimes(api, self._recorder, settings, self.job_cache, self.queue)
        self.find_runtime = self._runtimes.find
        self._ray_jobs = watch_children(api, RAY_JOBS, read_ray_job, RAY_JOB_FIELDS, self._ray_jobs_of, first)
        self._clusters = watch_children(api, RAY_CLUSTERS, read_ray_cluster, CHILD_FIELDS, self._clusters_of, first)
        self._erase_jobs = watch_children(api, BATCH_JOBS, read_erase_job, CHILD_FIELDS, self._erase_of, first)
        self._pods = watch_children(api, PODS, read_pod, POD_FIELDS, self._pods_of, first)
        namespaced = (self._jobs, self._ray_jobs, self._clusters, self._erase_jobs, self._pods)
        more = [reflector.also_in(namespace) for reflector in namespaced for namespace in others]
        self.reflectors = (*self._runtimes.reflectors, *namespaced, *more)

    @property
    def is_synced(self) -> bool:
        """Whether all caches have been filled once."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    def cached_job(self, key: Key) -> Job | None:
        """The job as cached; None if it is not. It may be stale."""
        cached = self._jobs.cache.get(key)
        return read_job(from_json(cached.raw)) if cached else None

    def status_not_written(self, key: Key) -> None:
        """Note that the API server has not stored a status of this job, so reports of its trainer may be lost too.

        Only of this job, because a single object can be the reason.
        """
        self._not_written[key] = self._now()

    async def reconcile(self, key: Key) -> float | None:
        """Reconcile one job, or a runtime, whose key has no namespace.

        Returns after how many seconds to do so again; None for "on the next change".
        """
        if not key.namespace:
            await self._runtimes.reconcile(key)
            return None
        job = self.cached_job(key)
        if job is None:
            self.observer.seen(key, None)
            self._written.pop(key, None)
            self._not_written.pop(key, None)
            return None
        if self._is_behind(job):
            return _BEHIND_POLL_SECONDS
        self.observer.seen(key, self._jobs.cache[key].summary)
        known = _Known()
        for _ in range(_MAX_PASSES):
            decision = await self._decide(job, known)
            created = known.created
            try:
                written = await self._carry_out(job, decision, known)
            except _ChildRejectedError as rejected:
                known.rejected = rejected.failure
                continue
            except ApiError as error:
                if error.is_not_found:  # deleted meanwhile; the watch will report it
                    return None
                raise
            if written:
                opened = written.status.attempts > job.status.attempts
                job, known = written, _Known(fresh=True, opened=opened, created=known.created)
            elif known.created is created:
                return decision.requeue_after_seconds
        log.warning("%s: %d status writes in a row", key, _MAX_PASSES)
        return 1.0

    def _is_behind(self, job: Job) -> bool:
        """Whether the cache lacks a status write of this process. The watch will deliver it.

        A decision about such a job would repeat requests, and end in a conflict.
        """
        version, until = self._written.get(job.key, (0, 0.0))
        if job.resource_version.isdigit() and int(job.resource_version) < version and time.monotonic() < until:
            return True
        self._written.pop(job.key, None)
        return False

    async def _decide(self, job: Job, known: _Known) -> Decision:
        resolution = self._runtimes.resolve(job)
        observed = replace(await self._observe(job, known), create_failure=known.rejected)
        return decide(job, resolution, observed, self._now(), self._settings)

    async def _observe(self, job: Job, known: _Known) -> Observed:
        ray_jobs = [self._ray_jobs.cache[key] for key in self._ray_jobs_of.of(job.key)]
        clusters = [self._clusters.cache[key] for key in self._clusters_of.of(job.key)]
        name = job.status.ray_job_name
        if name and job.status.phase not in TERMINAL and not any(r.name == name for r in ray_jobs):
            if known.created and known.created.name == name:
                ray_jobs.append(known.created)
            elif not known.opened:
                # The cache may not contain yet what another process has created.
                ray_jobs += await self._get_ray_job(Key(job.key.namespace, name))
        erase = self._erase_jobs.cache.get(Key(job.key.namespace, erase_name(job)))
        pods = await self._observe_pods(job)
        reason = await self._queue_reason(job)
        return Observed(
            tuple(ray_jobs),
            tuple(clusters),
            erase,
            pods=pods,
            reports_since=max(
                self.reports_since,
                self._jobs.unavailable or self.reports_since,
                self._not_written.get(job.key, self.reports_since),
            ),
            queue_reason=reason,
            progress_ca=self._progress_ca(),
        )

    async def _get_ray_job(self, key: Key) -> list[RayJob]:
        """The RayJob on the server; empty if it does not exist."""
        try:
            return [read_ray_job(await self._api.get(RAY_JOBS, key))]
        except ApiError as error:
            if not error.is_not_found:
                raise
            return []

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
        try:
            events = await self._api.request("GET", EVENTS.path(job.key.namespace), query=selector)
        except ApiError as error:  # they are only an explanation
            log.debug("%s: the events of pod %s are not known: %s", job.key, waiting.name, error)
            return tuple(pods)
        return tuple(explain_by_events(pod, events["items"]) if pod is waiting else pod for pod in pods)

    async def _carry_out(self, job: Job, decision: Decision, known: _Known) -> Job | None:
        """Execute the actions in order. Returns the written job if the status was written, else None."""
        written: Job | None = None
        for independent, actions in groupby(decision.actions, key=_is_independent):
            if independent:
                await self._create_together(job, actions, known)
                continue
            for action in actions:
                match action:
                    case WriteStatus(status, events):
                        written = read_job(await self._write_status(job, status))
                        known.fresh = True
                        self.observer.written(job.key, job.status, written.status)
                        for event in events:
                            self.on_event(event)
                            self._recorder.record(job.reference, event)
                    case Create(resource, obj):
                        await self._check_fresh(job, known)
                        made = await self._create(resource, obj)
                        if resource is RAY_JOBS and made:
                            known.created = read_ray_job(made)
                    case Delete(resource, key, uid):
                        if resource in COMPARED and not await self._owns(job, resource, key):
                            continue
                        await self._api.delete(resource, key, uid=uid, foreground=True)
                    case SetFinalizer(present):
                        await self._set_finalizer(written or job, present=present)
                    case DeleteJob():
                        await self._api.delete(JOBS, job.key, uid=job.uid)
        return written

    async def _create_together(self, job: Job, creations: Iterable[Action], known: _Known) -> None:
        await self._check_fresh(job, known)
        pending = [self._create(each.resource, each.obj) for each in creations if isinstance(each, Create)]
        results = await asyncio.gather(*pending, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def _create(self, resource: Resource, obj: Json) -> Json | None:
        """Create a child and return it; None if it exists already."""
        try:
            return await self._api.create(resource, obj)
        except ApiError as error:
            if error.status in (400, 403, 422):
                raise _ChildRejectedError(rejected_child(resource.kind, error.status, error.message)) from error
            if not error.is_already_exists:
                raise
            await self._check_existing(resource, obj)
            return None

    async def _write_status(self, job: Job, status: JobStatus) -> Json:
        """Apply the controller's fields of the status. Raises a conflict if the job has changed since it was read."""
        content = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        obj: Json = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {**job.key._asdict(), "resourceVersion": job.resource_version},
            "status": {name: value for name, value in content.items() if name in CONTROL_FIELDS},
        }
        try:
            applied = await self._api.apply(JOBS, obj, manager=FIELD_MANAGER, subresource="status")
        except (ApiError, *CONNECTION_ERRORS) as error:
            if not isinstance(error, ApiError) or error.is_transient:
                self.status_not_written(job.key)
            raise
        if (version := applied["metadata"]["resourceVersion"]).isdigit():
            self._written[job.key] = (int(version), time.monotonic() + _MAX_BEHIND_SECONDS)
        return applied

    async def _check_fresh(self, job: Job, known: _Known) -> None:
        """Raise a conflict if the job on the server is not the observed one."""
        if known.fresh:
            return
        metadata = (await self._api.get(JOBS, job.key))["metadata"]
        if metadata["uid"] != job.uid or metadata["resourceVersion"] != job.resource_version:
            raise ApiError(409, "Conflict", "the job changed since it was read")
        known.fresh = True

    async def _check_existing(self, resource: Resource, wanted: Json) -> None:
        """Raise if the object with the name of a child is not that child."""
        if resource not in (*COMPARED, RAY_JOBS):
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
        self._runtimes.job_changed(job)
        if job not in self._jobs.cache:  # a standby notes writes as well, and does not reconcile
            self._not_written.pop(job, None)


def _is_independent(action: Action) -> bool:
    return isinstance(action, Create) and action.resource in _INDEPENDENT
