"""Decides which worker runs which call, while workers come and go. Does not use Ray."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

W = TypeVar("W")


@dataclass(frozen=True)
class Call:
    """Arguments of a call, and how many workers have died while they ran it."""

    arguments: tuple[Any, ...]
    losses: int = 0


class Dispatcher(Generic[W]):
    """Assigns calls to the workers with the fewest calls. Calls are read one by one, as workers become free.

    Args:
        calls_per_worker: maximum number of concurrent calls of one worker.
    """

    def __init__(self, calls: Iterable[tuple[Any, ...]], calls_per_worker: int) -> None:
        self._calls, self._pending = iter(calls), deque[Call]()
        self._limit = calls_per_worker
        self._running: dict[W, int] = {}

    def add(self, worker: W) -> None:
        """A worker is ready."""
        self._running.setdefault(worker, 0)

    def has_calls(self) -> bool:
        """Whether a call waits for a worker."""
        if not self._pending and (arguments := next(self._calls, None)) is not None:
            self._pending.append(Call(arguments))
        return bool(self._pending)

    def assignments(self) -> Iterator[tuple[W, Call]]:
        """Assign calls until no worker is free or no call is left."""
        while self._running and self.has_calls():
            worker = min(self._running, key=self._running.__getitem__)
            if self._running[worker] == self._limit:
                return
            self._running[worker] += 1
            yield worker, self._pending.popleft()

    def finish(self, worker: W) -> None:
        """A call has returned."""
        if worker in self._running:
            self._running[worker] -= 1

    def lose(self, worker: W, call: Call) -> None:
        """A worker has died while it ran a call, which another worker will run. Called once for each of its calls."""
        self._running.pop(worker, None)
        self._pending.append(Call(call.arguments, call.losses + 1))


@dataclass(frozen=True)
class PoolSize:
    """Number of workers that a cluster has room for, and number of CPU threads of each."""

    workers: int
    threads: int


def share_of_cores(resources: Mapping[str, float], max_cpus: float | None, jobs: int = 1) -> int:
    """Number of cores that a job can use on a Ray cluster; at least 1.

    Args:
        resources: total resources of the cluster's present nodes, as Ray reports them.
        max_cpus: number of cores that the job requested on a cluster that it shares; None for all.
        jobs: number of jobs that run at the same time and share the cores.
    """
    present = resources.get("CPU", 1)
    return max(1, int(present if max_cpus is None else min(present, max_cpus)) // jobs)


def pool_size(resources: Mapping[str, float], processes: int, cores: int, *, gpu: bool) -> PoolSize:
    """The size of a pool on a Ray cluster. At least one worker, which waits for a node if there is none.

    Args:
        resources: as `share_of_cores`.
        processes: maximum number of workers.
        cores: number of cores that the pool can use.
        gpu: whether each worker needs a GPU.
    """
    workers = max(1, min(int(resources.get("GPU", 0)) if gpu else cores, processes))
    return PoolSize(workers, max(1, cores // workers))
