"""A pool of Ray actors that generate, encode and score images: one per GPU, or a few on CPUs.

All phases share one pool, because importing diffusers takes a process more than ten seconds of CPU time.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from dreambooth_trainer.cluster.memory_errors import out_of_memory

# Retries of a call whose worker died.
MAX_CALL_RETRIES = 5


class PoolWorker:
    """A Ray actor that runs one function at a time. Objects cached by their modules are kept between calls."""

    def __init__(self, threads: int, preload: str) -> None:
        # Slow imports run while the driver prepares images.
        import torch

        if preload:
            importlib.import_module(preload)

        torch.set_num_threads(threads)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function. It must be importable by the workers."""
        return function(*arguments)


class WorkerPool:
    """The workers of one run. A worker that dies is replaced and its call is retried, so calls must be idempotent.

    A worker that was killed because of memory pressure is not replaced: its replacement would be killed as well.

    Args:
        processes: maximum number of workers. Fewer start if the cluster has fewer GPUs or cores.
        gpu: whether each worker reserves a GPU.
        preload: module that workers import when they start; empty for none.
    """

    def __init__(self, processes: int, *, gpu: bool = False, preload: str = "") -> None:
        self._processes, self._gpu, self._preload = processes, gpu, preload
        self._actors: list[Any] = []
        self._threads = 1

    def start(self) -> list[Any]:
        """Start the actors unless they run, and return them without waiting for their imports."""
        if not self._actors:
            resources = ray.cluster_resources()
            cpus = int(resources.get("CPU", 1))
            count = max(1, min(int(resources.get("GPU", 0)) if self._gpu else cpus, self._processes))
            self._threads = max(1, cpus // count)
            self._actors = [self._start_actor() for _ in range(count)]
        return self._actors

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker, on its GPU if it has one."""
        return next(self.map(function, [arguments]))

    def map(self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Call a function with each tuple of arguments, on any idle worker. Results are yielded as they complete.

        Raises:
            InsufficientMemoryError: a worker or its GPU ran out of memory.
        """
        pending = deque((arguments, 0) for arguments in calls)
        idle = deque(self.start())
        running: dict[Any, tuple[Any, tuple[Any, ...], int]] = {}
        while pending or running:
            while pending and idle:
                actor, (arguments, retries) = idle.popleft(), pending.popleft()
                running[actor.run.remote(function, *arguments)] = (actor, arguments, retries)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, arguments, retries = running.pop(done)
            try:
                result = ray.get(done)
            except (OutOfMemoryError, RayTaskError) as error:
                if memory_error := out_of_memory(error, "image generation, encoding or scoring"):
                    raise memory_error from error
                raise
            except RayActorError:
                if retries == MAX_CALL_RETRIES:
                    raise
                idle.append(self._replace(actor))
                pending.appendleft((arguments, retries + 1))
                continue
            idle.append(actor)
            yield result

    def free_memory(self, release_models: Callable[[], None]) -> None:
        """Free memory for training: on GPUs by stopping all workers, on CPUs by calling `release_models` on each.

        Workers on CPUs keep running, because their imports are slow.
        """
        if self._gpu:
            self.stop()
        elif self._actors:
            ray.get([actor.run.remote(release_models) for actor in self._actors])

    def stop(self) -> None:
        """Kill all workers. The next call starts new ones."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _start_actor(self) -> Any:
        # Without num_cpus, Ray needs a free core to place an actor but does not reserve it: training needs all cores.
        options: dict[str, Any] = {"num_gpus": 1} if self._gpu else {"scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(**options)(PoolWorker)
        return actor.remote(self._threads, self._preload)

    def _replace(self, dead: Any) -> Any:
        replacement = self._start_actor()
        self._actors = [replacement if actor is dead else actor for actor in self._actors]
        return replacement
