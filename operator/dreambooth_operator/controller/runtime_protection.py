"""Protection of runtimes: one that is deleted exists until no unfinished job uses it, as volume claims do.

Each runtime has a finalizer. A job uses the runtime that it was started with. Jobs do not start with a runtime that is
being deleted, so a deletion ends. Finished jobs need no runtime, also not for the deletion of their data.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from pydantic_core import from_json

from dreambooth_api.status import TERMINAL, Phase
from dreambooth_operator.controller.observed import AnyRuntime, CachedJob
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.events import Event, Recorder
from dreambooth_operator.machinery.resources import Json, Key, Resource, part
from dreambooth_operator.resources import RUNTIME_FINALIZER

# How long changes of jobs are collected before the users of a runtime that is being deleted are counted again.
RECOUNT_SECONDS = 2.0
_NEEDS_NONE = TERMINAL | {Phase.ERASING}
_JOBS_PER_TURN = 100


def uses_runtime(job: CachedJob, runtime: Key) -> bool:
    """Whether a job of the runtime's namespace, as cached, needs the runtime, or a child of it, for its next attempt.

    Pure. The key of a DreamBoothRuntime, which is cluster-scoped, has no namespace.
    """
    raw = job.raw
    if f'"{runtime.name}"'.encode() not in raw:  # most jobs need not be parsed
        return False
    status = part(from_json(raw), "status")
    if status.get("phase") in _NEEDS_NONE:
        return False
    started = part(status, "startedWith", "runtime")
    if "parent" in started:
        return runtime.name == started["name" if runtime.namespace else "parent"]
    return not runtime.namespace and runtime.name == started.get("name")


def wanted_finalizers(runtime: AnyRuntime[Any], *, in_use: bool) -> list[str] | None:
    """The finalizers that a runtime should have; None if it has them. Pure."""
    present = RUNTIME_FINALIZER in runtime.finalizers
    # No finalizer can be added to an object that is being deleted.
    wanted = not runtime.deleting or (present and in_use)
    if wanted == present:
        return None
    others = [finalizer for finalizer in runtime.finalizers if finalizer != RUNTIME_FINALIZER]
    return [*others, RUNTIME_FINALIZER] if wanted else others


class RuntimeProtection:
    """Adds the finalizer to runtimes of one kind and removes it. `runtimes` and `jobs` are caches."""

    def __init__(
        self,
        api: Api,
        recorder: Recorder,
        resource: Resource,
        runtimes: Mapping[Key, AnyRuntime[Any]],
        jobs: Mapping[Key, CachedJob],
    ) -> None:
        self._api = api
        self._recorder = recorder
        self._resource = resource
        self._runtimes = runtimes
        self._jobs = jobs
        self._reported: dict[str, str] = {}

    def deleting(self, namespace: str) -> list[Key]:
        """Runtimes that wait for the end of jobs, for example of this namespace."""
        return [
            key
            for key, runtime in self._runtimes.items()
            if runtime.deleting and RUNTIME_FINALIZER in runtime.finalizers and key.namespace in ("", namespace)
        ]

    async def reconcile(self, key: Key) -> None:
        """Make the finalizer of a runtime match its use."""
        runtime = self._runtimes.get(key)
        if runtime is None:
            return
        users = await self._users(key) if runtime.deleting else []
        finalizers = wanted_finalizers(runtime, in_use=bool(users))
        if finalizers is not None:
            metadata: Json = {"finalizers": finalizers, "resourceVersion": runtime.resource_version}
            try:
                await self._api.merge(self._resource, key, {"metadata": metadata})
            except ApiError as error:
                if not error.is_not_found:
                    raise
        if users:
            await self._report(key, runtime, users)

    async def _users(self, runtime: Key) -> list[Key]:
        users: list[Key] = []
        for number, (key, job) in enumerate(list(self._jobs.items())):
            if runtime.namespace in ("", key.namespace) and uses_runtime(job, runtime):
                users.append(key)
            if number % _JOBS_PER_TURN == 0:
                await asyncio.sleep(0)  # let other tasks run
        return users

    async def _report(self, key: Key, runtime: AnyRuntime[Any], users: list[Key]) -> None:
        """Record why the runtime still exists, if that has changed."""
        message = (
            f"The runtime is deleted once no unfinished job uses it. Jobs that use it: {len(users)}, for example "
            f"{min(users)}."
        )
        if self._reported.get(runtime.uid) == message:
            return
        self._reported[runtime.uid] = message
        about = {
            "apiVersion": self._resource.api_version,
            "kind": self._resource.kind,
            "name": runtime.name,
            "uid": runtime.uid,
        }
        if key.namespace:
            about["namespace"] = key.namespace
        self._recorder.record(about, Event("Normal", "RuntimeInUse", message))
