"""What metrics need of a job, so that thousands of cached jobs need not be parsed for each scrape. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from sys import intern
from typing import Any

from dreambooth_api.runtimeref import DEFAULT_RUNTIME, LOCAL_RUNTIME_KIND
from dreambooth_api.status import JobStatus, Phase
from dreambooth_operator.machinery.resources import Json, Key, part

_PHASES: dict[str, Phase] = {phase.value: phase for phase in Phase}


@dataclass(frozen=True, slots=True)
class JobSummary:
    """Facts of a cached job.

    Attributes:
        phase: None if a newer operator has written it.
        runtime: the runtime that the job was started with, or the one that it names. A local one has a namespace.
        started_runtime: name of the DreamBoothRuntime that the job was started with; of a local one, its parent.
        active_since: status.activeSince.
        workers: number of workers with which an attempt starts.
        gpus_per_worker: None for the default of the runtime.
        world_size: number of training processes of an elastic job, as reported.
        steps_per_second: speed of training; None unless the trainer of a running job reports it.
    """

    namespace: str
    phase: Phase | None
    runtime: Key
    started_runtime: str
    active_since: str | None
    workers: int
    gpus_per_worker: int | None
    world_size: int | None
    steps_per_second: float | None

    def gpus(self, default_per_worker: int) -> int:
        """Number of GPUs of all workers. An elastic job has one training process per GPU."""
        per_worker = default_per_worker if self.gpus_per_worker is None else self.gpus_per_worker
        return self.world_size if per_worker and self.world_size else self.workers * per_worker


class JobObserver:
    """What the reconciler tells about jobs. This one ignores it."""

    def seen(self, key: Key, job: JobSummary | None) -> None:
        """A job is about to be reconciled; None if it was deleted, which needs no status write."""

    def written(self, key: Key, before: JobStatus, after: JobStatus) -> None:
        """The status of a job that was seen has been written."""


def summarize_job(obj: Json) -> JobSummary:
    """The summary of a listed job. Values of unexpected types count as missing."""
    spec, status = part(obj, "spec"), part(obj, "status")
    cluster, training = part(spec, "cluster"), part(status, "training")
    elastic = part(cluster, "elastic")
    workers = _number(cluster.get("workers")) or 1
    if elastic:
        workers = min(max(workers, _number(elastic.get("minWorkers")) or 1), _number(elastic.get("maxWorkers")) or 1)
    phase = _PHASES.get(status.get("phase") or Phase.PENDING)
    reference, started = part(spec, "runtimeRef"), part(status, "startedWith", "runtime")
    namespace = intern(part(obj, "metadata").get("namespace", ""))
    is_local = bool(started.get("parent")) if started else reference.get("kind") == LOCAL_RUNTIME_KIND
    name = started.get("name") or reference.get("name") or DEFAULT_RUNTIME
    speed = training.get("stepsPerSecond") if phase is Phase.RUNNING else None
    return JobSummary(
        namespace=namespace,
        phase=phase,
        runtime=Key(namespace if is_local else "", intern(name)),
        started_runtime=intern(started.get("parent") or started.get("name") or ""),
        active_since=status.get("activeSince"),
        workers=workers,
        gpus_per_worker=_number(part(cluster, "resources").get("gpu")),
        world_size=_number(training.get("worldSize")) if elastic else None,
        steps_per_second=float(speed) if isinstance(speed, int | float) else None,
    )


def _number(value: Any) -> int | None:
    return value if isinstance(value, int) else None
