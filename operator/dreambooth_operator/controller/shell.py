"""Where decisions meet the API server: mirrors what a decision needs, and carries it out.

Caches may lag, so what cannot be taken back is checked against the server first: a RayJob is believed
gone only when the server says so, and created only if the job is still the one that was decided about.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from pydantic_core import from_json

from dreambooth_api.status import CONTROL_FIELDS, TERMINAL, Failure, JobStatus
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.draft import Create, Decision, Delete, DeleteJob, SetFinalizer, WriteStatus
from dreambooth_operator.controller.names import erase_name
from dreambooth_operator.controller.rayjob import Settings
from dreambooth_operator.controller.resolve import choose_runtime, resolve
from dreambooth_operator.controller.views import (
    EraseJob,
    Job,
    Observed,
    RayCluster,
    RayJob,
    Runtime,
    read_erase_job,
    read_job,
    read_ray_cluster,
    read_ray_job,
    read_runtime,
    trim_job,
)
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.events import Event, Recorder
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Json, Key, Resource
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
# A status write is followed by another look at once; more in a row than this would be a loop.
_MOST_PASSES = 8


class _RefusedError(Exception):
    """The API server will not take a child, and says why."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class _Owned(Protocol):
    @property
    def owner(self) -> str: ...


class Children:
    """Which children a job has, from the caches of their kinds; a change of one wakes its job."""

    def __init__(self, wake: Callable[[Key], None]) -> None:
        self._wake = wake
        self._of: dict[Key, set[Key]] = defaultdict(set)
        self._owner: dict[Key, Key] = {}

    def changed(self, child: Key, view: _Owned | None) -> None:
        """A child came or changed (`view`), or went (None)."""
        owner = Key(child.namespace, view.owner) if view else self._owner.get(child)
        if owner is None:
            return
        if view:
            self._owner[child] = owner
            self._of[owner].add(child)
        else:
            del self._owner[child]
            self._of[owner].discard(child)
            if not self._of[owner]:
                del self._of[owner]
        self._wake(owner)

    def of(self, owner: Key) -> list[Key]:
        """The keys of the children of `owner`, in order."""
        return sorted(self._of.get(owner, ()))


class Controller:
    """Reconciles DreamBoothJobs. `queue` is filled by the mirrors in `reflectors`, which somebody must run."""

    def __init__(self, api: Api, settings: Settings, *, now: Callable[[], datetime]) -> None:
        self._api = api
        self._settings = settings
        self._now = now
        self._recorder = Recorder(api, "dreambooth-operator")
        self.queue: WorkQueue[Key] = WorkQueue()
        self.on_event: Callable[[Event], None] = lambda _: None
        self._ray_jobs_of, self._clusters_of, self._erase_of = (Children(self.queue.add) for _ in range(3))
        self._jobs: Reflector[bytes] = Reflector(api, JOBS, project=trim_job, on_change=self.queue.add)
        self._runtimes: Reflector[Runtime] = Reflector(
            api, RUNTIMES, project=read_runtime, on_change=self._runtime_changed
        )
        self._ray_jobs: Reflector[RayJob] = Reflector(
            api,
            RAY_JOBS,
            project=read_ray_job,
            on_change=lambda key: self._ray_jobs_of.changed(key, self._ray_jobs.cache.get(key)),
            selector=JOB_LABEL,
        )
        self._clusters: Reflector[RayCluster] = Reflector(
            api,
            RAY_CLUSTERS,
            project=read_ray_cluster,
            on_change=lambda key: self._clusters_of.changed(key, self._clusters.cache.get(key)),
            selector=JOB_LABEL,
        )
        self._erase_jobs: Reflector[EraseJob] = Reflector(
            api,
            BATCH_JOBS,
            project=read_erase_job,
            on_change=lambda key: self._erase_of.changed(key, self._erase_jobs.cache.get(key)),
            selector=JOB_LABEL,
        )
        self.reflectors = (self._jobs, self._runtimes, self._ray_jobs, self._clusters, self._erase_jobs)

    @property
    def is_synced(self) -> bool:
        """Whether all mirrors have been filled once."""
        return all(reflector.synced.is_set() for reflector in self.reflectors)

    @property
    def job_count(self) -> int:
        """How many jobs there are."""
        return len(self._jobs.cache)

    async def reconcile(self, key: Key) -> float | None:
        """Bring one job closer to what it should be; answers when to look again, None for "on a change"."""
        raw = self._jobs.cache.get(key)
        if raw is None:
            return None
        job = read_job(from_json(raw))
        refusal: Failure | None = None
        for _ in range(_MOST_PASSES):
            decision = await self._decide(job, refusal)
            try:
                written = await self._carry_out(job, decision)
            except _RefusedError as refused:
                refusal = refused.failure
                continue
            except ApiError as error:
                if error.is_not_found:  # deleted meanwhile; the watch will say so
                    return None
                raise
            if written is None:
                return decision.again_seconds
            job, refusal = written, None
        log.warning("%s: %d status writes in a row", key, _MOST_PASSES)
        return 1.0

    async def _decide(self, job: Job, refusal: Failure | None) -> Decision:
        name = choose_runtime(job.spec) if job.spec else ""
        runtimes = {key.name for key in self._runtimes.cache}
        resolution = resolve(job, self._runtimes.cache.get(Key("", name)), sorted(runtimes))
        observed = replace(await self._observe(job), refusal=refusal)
        return decide(job, resolution, observed, self._now(), self._settings)

    async def _observe(self, job: Job) -> Observed:
        ray_jobs = [self._ray_jobs.cache[key] for key in self._ray_jobs_of.of(job.key)]
        clusters = [self._clusters.cache[key] for key in self._clusters_of.of(job.key)]
        name = job.status.ray_job_name
        if name and job.status.phase not in TERMINAL and not any(r.name == name for r in ray_jobs):
            # The cache may not have caught up with what another process did.
            try:
                ray_jobs.append(read_ray_job(await self._api.get(RAY_JOBS, Key(job.key.namespace, name))))
            except ApiError as error:
                if not error.is_not_found:
                    raise
        erase = self._erase_jobs.cache.get(Key(job.key.namespace, erase_name(job)))
        return Observed(tuple(ray_jobs), tuple(clusters), erase)

    async def _carry_out(self, job: Job, decision: Decision) -> Job | None:
        """Act in order; the job as written if its status was written, else None."""
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
                            raise _RefusedError(_refusal(resource, error)) from error
                        if not error.is_already_there:
                            raise
                case Delete(resource, key, uid):
                    await self._api.delete(resource, key, uid=uid, foreground=True)
                case SetFinalizer(present):
                    await self._set_finalizer(written or job, present=present)
                case DeleteJob():
                    await self._api.delete(JOBS, job.key, uid=job.uid)
        return written

    async def _write_status(self, job: Job, status: JobStatus) -> Json:
        """Apply our part of the status, if nobody has touched the job since; ApiError.is_conflict if so."""
        content = status.model_dump(mode="json", by_alias=True, exclude_none=True)
        obj: Json = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {**_name(job), "resourceVersion": job.resource_version},
            "status": {name: value for name, value in content.items() if name in CONTROL_FIELDS},
        }
        return await self._api.apply(JOBS, obj, manager=FIELD_MANAGER, subresource="status")

    async def _check_fresh(self, job: Job) -> None:
        """Raise a conflict unless the server has the very job that was decided about."""
        metadata = (await self._api.get(JOBS, job.key))["metadata"]
        if metadata["uid"] != job.uid or metadata["resourceVersion"] != job.resource_version:
            raise ApiError(409, "Conflict", "the job changed since it was read")

    async def _set_finalizer(self, job: Job, *, present: bool) -> None:
        finalizers = [f for f in job.finalizers if f != ERASE_FINALIZER] + ([ERASE_FINALIZER] if present else [])
        metadata: Json = {"finalizers": finalizers, "resourceVersion": job.resource_version}
        await self._api.merge(JOBS, job.key, {"metadata": metadata})

    def _runtime_changed(self, runtime: Key) -> None:
        """Wake the jobs that may have waited for this runtime: those that are over need none."""
        for key, raw in self._jobs.cache.items():
            if b'"phase":"Succeeded"' not in raw and b'"phase":"Failed"' not in raw:
                self.queue.add(key)


def _refusal(resource: Resource, error: ApiError) -> Failure:
    """Invalid stays invalid; forbidden may pass, as a quota does."""
    message = f"The API server does not take the {resource.kind}: {error.message}"
    return Failure(reason=f"{resource.kind}Refused", message=message, retryable=error.status == 403)


def _name(job: Job) -> Json:
    return {"name": job.key.name, "namespace": job.key.namespace}
