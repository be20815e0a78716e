"""The caches of runtimes, and what follows from a change of one: jobs to reconcile, and finalizers.

LocalDreamBoothRuntimes are watched only if the operator allows them. The queue of the reconciler has jobs and runtimes:
the key of a runtime has no namespace, and its name is `<namespace>/<name>` for a local one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND
from dreambooth_api.status import TERMINAL
from dreambooth_operator.controller.observed import (
    CachedJob,
    Job,
    LocalRuntime,
    Runtime,
    read_local_runtime,
    read_runtime,
)
from dreambooth_operator.controller.resolve import Resolution
from dreambooth_operator.controller.resolve_local import resolve_job
from dreambooth_operator.controller.runtime_protection import RECOUNT_SECONDS, RuntimeProtection
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.events import Recorder
from dreambooth_operator.machinery.queue import WorkQueue
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import LOCAL_RUNTIMES, RUNTIMES

_LOCAL = f'"{LOCAL_RUNTIME_KIND}"'.encode()


class Runtimes:
    """Runtimes of both kinds. The caller runs `reflectors`; `jobs` is a cache."""

    def __init__(
        self, api: Api, recorder: Recorder, settings: Settings, jobs: Mapping[Key, CachedJob], queue: WorkQueue[Key]
    ) -> None:
        self._jobs = jobs
        self._queue = queue
        self._cluster: Reflector[Runtime] = Reflector(api, RUNTIMES, project=read_runtime, on_change=self._changed)
        self._local: Reflector[LocalRuntime] | None = None
        self._protections = [RuntimeProtection(api, recorder, RUNTIMES, self._cluster.cache, jobs)]
        self.reflectors: tuple[Reflector[Any], ...] = (self._cluster,)
        if settings.local_runtimes:
            first, *others = settings.watch_namespaces or ("",)
            self._local = local = Reflector(
                api, LOCAL_RUNTIMES, project=read_local_runtime, on_change=self._changed, namespace=first
            )
            self._protections.append(RuntimeProtection(api, recorder, LOCAL_RUNTIMES, local.cache, jobs))
            self.reflectors += (local, *map(local.also_in, others))

    def resolve(self, job: Job) -> Resolution:
        """Resolve a job against the runtime that it names."""
        return resolve_job(job, self._cluster.cache, self._local.cache if self._local else None)

    def find(self, key: Key) -> Runtime | LocalRuntime | None:
        """The runtime as cached; None if it does not exist. The key of a DreamBoothRuntime has no namespace."""
        if key.namespace:
            return self._local.cache.get(key) if self._local else None
        return self._cluster.cache.get(key)

    async def reconcile(self, queued: Key) -> None:
        """Make the finalizer of a runtime match its use."""
        namespace, _, name = queued.name.rpartition("/")
        for protection in self._protections:
            await protection.reconcile(Key(namespace, name))

    def job_changed(self, job: Key) -> None:
        """Enqueue the runtimes that may have waited for the end of this job."""
        for protection in self._protections:
            for key in protection.deleting(job.namespace):
                self._queue.add_after(_queued(key), RECOUNT_SECONDS)

    def _changed(self, runtime: Key) -> None:
        """Enqueue a runtime, and the jobs that have not finished and may use it."""
        self._queue.add(_queued(runtime))
        for key, job in self._jobs.items():
            if job.summary.phase in TERMINAL:
                continue
            if runtime.namespace and (key.namespace != runtime.namespace or _LOCAL not in job.raw):
                continue
            self._queue.add(key)


def _queued(runtime: Key) -> Key:
    return Key("", str(runtime))
