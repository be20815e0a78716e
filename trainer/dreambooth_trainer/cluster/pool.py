"""A pool of Ray actors that generate, encode and score images: one per GPU, or a few on CPUs.

All phases share one pool, because importing diffusers takes a process more than ten seconds of CPU time.
"""

from __future__ import annotations

import gc
import importlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from dreambooth_trainer.cluster.dispatch import Call, Dispatcher, PoolSize, pool_size, share_of_cores
from dreambooth_trainer.cluster.interrupts import check_interrupted
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.cluster.oom_kills import oom_kills

ACTIVITY = "image generation, encoding or scoring"
"""What workers do, for error messages."""

# Retries of a call whose worker died, and of a worker that dies while it starts.
MAX_RETRIES = 5
# While one call computes, another can write its results.
MAX_CALLS_PER_WORKER = 2
RESIZE_SECONDS = 5.0
"""Interval of looking for new nodes while calls run."""


class PoolWorker:
    """A Ray actor that runs functions. Objects cached by their modules are kept between calls."""

    def __init__(self, threads: int, preload: str) -> None:
        # Slow imports run while the driver prepares images.
        import torch

        if preload:
            importlib.import_module(preload)
        # Models are freed by collections, which would look at the half million objects of these imports each time.
        gc.freeze()
        torch.set_num_threads(threads)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function. It must be importable by the workers."""
        return function(*arguments)


class WorkerPool:
    """The workers of one run. A worker that dies is replaced and its call is retried, so calls must be idempotent.

    The pool follows the cluster: workers start when nodes join, and the calls of a lost node go to other workers.
    A worker that was killed because of memory pressure is not replaced: its replacement would be killed as well.

    Args:
        processes: maximum number of workers. Fewer start if the cluster has fewer GPUs or cores.
        gpu: whether each worker reserves a GPU.
        preload: module that workers import when they start; empty for none.
        max_cpus: number of cores that the job requested on a cluster that it shares with other jobs; None for all.
        jobs: number of jobs of this process that run at the same time and share the cores.
    """

    def __init__(
        self, processes: int, *, gpu: bool = False, preload: str = "", max_cpus: float | None = None, jobs: int = 1
    ) -> None:
        self._processes, self._gpu, self._preload, self._max_cpus = processes, gpu, preload, max_cpus
        self._jobs = jobs
        self._actors: list[Any] = []
        self._kills_before = oom_kills()

    def size(self) -> PoolSize:
        """Number of workers that the cluster has room for at the moment."""
        return pool_size(ray.cluster_resources(), self._processes, self.cores(), gpu=self._gpu)

    def cores(self) -> int:
        """Number of cores that the job can use at the moment, for these workers or for training."""
        return share_of_cores(ray.cluster_resources(), self._max_cpus, self._jobs)

    def start(self) -> list[Any]:
        """Start the actors that are missing, and return all without waiting for their imports.

        On GPUs, actors that wait for a GPU let an autoscaler add nodes. They get no calls until they run.
        """
        if len(self._actors) < self._processes:
            size = self.size()
            wanted = self._processes if self._gpu else size.workers
            self._actors += [self._start_actor(size.threads) for _ in range(wanted - len(self._actors))]
        return self._actors

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker, on its GPU if it has one."""
        return next(self.map(function, [arguments]))

    def map(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, calls_per_worker: int = 1
    ) -> Iterator[Any]:
        """Call a function with each tuple of arguments, on any free worker. Results are yielded as they complete.

        Args:
            calls: read one by one, as workers become free.
            calls_per_worker: concurrent calls of one worker, in threads; at most MAX_CALLS_PER_WORKER.

        Raises:
            InsufficientMemoryError: a worker or its GPU ran out of memory.
        """
        dispatcher: Dispatcher[Any] = Dispatcher(calls, calls_per_worker)
        known: set[Any] = set()
        starting: dict[Any, Any] = {}
        running: dict[Any, tuple[Any, Call]] = {}
        failed_starts = 0
        while running or dispatcher.has_calls():
            new = [actor for actor in self.start() if actor not in known]
            known.update(new)
            starting |= {actor.__ray_ready__.remote(): actor for actor in new}
            for actor, call in dispatcher.assignments():
                running[actor.run.remote(function, *call.arguments)] = (actor, call)
            check_interrupted()
            for ref in ray.wait([*starting, *running], timeout=RESIZE_SECONDS)[0]:
                result = self._result(ref)
                if ref in starting:
                    actor = starting.pop(ref)
                    if isinstance(result, RayActorError):
                        failed_starts += 1
                        self._discard(actor, result, failed_starts)
                    else:
                        dispatcher.add(actor)
                    continue
                actor, call = running.pop(ref)
                if isinstance(result, RayActorError):
                    self._discard(actor, result, call.losses + 1)
                    dispatcher.lose(actor, call)
                else:
                    dispatcher.finish(actor)
                    yield result

    def free_memory(self, release_models: Callable[[], None]) -> None:
        """Free memory for training: on GPUs by stopping all workers, on CPUs by calling `release_models` on each.

        Workers on CPUs keep running, because their imports are slow. Those that have died are replaced later.

        Raises:
            InsufficientMemoryError: a worker was killed because of memory pressure.
        """
        if self._gpu:
            self.stop()
            return
        running = {actor.run.remote(release_models): actor for actor in self._actors}
        while running:
            check_interrupted()
            for ref in ray.wait([*running], timeout=RESIZE_SECONDS)[0]:
                actor, result = running.pop(ref), self._result(ref)
                if isinstance(result, RayActorError):
                    self._discard(actor, result, 1)

    def stop(self) -> None:
        """Kill all workers. The next call starts new ones."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _start_actor(self, threads: int) -> Any:
        # Without num_cpus, Ray needs a free core to place an actor but does not reserve it: training needs all cores.
        options: dict[str, Any] = {"num_gpus": 1} if self._gpu else {"scheduling_strategy": "SPREAD"}
        options["max_concurrency"] = MAX_CALLS_PER_WORKER
        actor: Any = ray.remote(**options)(PoolWorker)
        return actor.remote(threads, self._preload)

    def _discard(self, dead: Any, error: RayActorError, failures: int) -> None:
        """Forget a worker that has died. The next loop starts another one, unless too many have failed."""
        # If it is only unreachable, it would keep the GPU that its replacement waits for.
        ray.kill(dead)
        self._actors = [actor for actor in self._actors if actor is not dead]
        if memory_error := out_of_memory(error, ACTIVITY, kills_before=self._kills_before):
            raise memory_error from error
        if failures > MAX_RETRIES:
            raise error

    @staticmethod
    def _result(ref: Any) -> Any:
        """The result of a call, or the error if its worker has died."""
        try:
            return ray.get(ref)
        except (OutOfMemoryError, RayTaskError) as error:
            if memory_error := out_of_memory(error, ACTIVITY):
                raise memory_error from error
            raise
        except RayActorError as error:
            return error
