"""The processes that generate, encode and score: one per GPU, or a few on CPUs, started once for a whole job.

A process needs ten seconds of CPU and more to import diffusers, so phases do not each start their own.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.exceptions import OutOfMemoryError, RayActorError, RayTaskError

from dreambooth_trainer.cluster.memory_errors import out_of_memory

# Times that a call is repeated after the death of the worker that ran it.
MAX_CALL_RETRIES = 5


class PoolWorker:
    """A Ray actor that runs functions, one at a time; what they cache in their modules stays between calls."""

    def __init__(self, threads: int, preload: str) -> None:
        # Slow imports happen while the driver still prepares images.
        import torch

        if preload:
            importlib.import_module(preload)

        torch.set_num_threads(threads)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module that workers can import."""
        return function(*arguments)


class WorkerPool:
    """The workers of one run. A dead one is replaced and its call repeated, so a call must be repeatable.

    A worker that was killed for lack of memory is not replaced: the next one would be killed as well.

    Args:
        processes: the most workers; fewer where the cluster has fewer GPUs or cores.
        gpu: whether each worker has a GPU.
        preload: a module that workers import when they start; empty for none.
    """

    def __init__(self, processes: int, *, gpu: bool = False, preload: str = "") -> None:
        self._processes, self._gpu, self._preload = processes, gpu, preload
        self._actors: list[Any] = []
        self._threads = 1

    def start(self) -> list[Any]:
        """The actors, started if they are not; returns at once, while they import."""
        if not self._actors:
            resources = ray.cluster_resources()
            cpus = int(resources.get("CPU", 1))
            count = max(1, min(int(resources.get("GPU", 0)) if self._gpu else cpus, self._processes))
            self._threads = max(1, cpus // count)
            self._actors = [self._new() for _ in range(count)]
        return self._actors

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker, on its GPU if it has one."""
        return next(self.map(function, [arguments]))

    def map(self, function: Callable[..., Any], orders: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Run a function once for each tuple of arguments, on whichever worker is free; results as they come.

        Raises:
            InsufficientMemoryError: a worker was killed for lack of memory, or its GPU has too little.
        """
        waiting = deque((order, 0) for order in orders)
        idle = deque(self.start())
        running: dict[Any, tuple[Any, tuple[Any, ...], int]] = {}
        while waiting or running:
            while waiting and idle:
                actor, (order, tries) = idle.popleft(), waiting.popleft()
                running[actor.run.remote(function, *order)] = (actor, order, tries)
            (done,), _ = ray.wait(list(running), num_returns=1)
            actor, order, tries = running.pop(done)
            try:
                result = ray.get(done)
            except (OutOfMemoryError, RayTaskError) as error:
                if shortage := out_of_memory(error, "generating, encoding or scoring images"):
                    raise shortage from error
                raise
            except RayActorError:
                if tries == MAX_CALL_RETRIES:
                    raise
                idle.append(self._replace(actor))
                waiting.appendleft((order, tries + 1))
                continue
            idle.append(actor)
            yield result

    def free_memory(self, drop_models: Callable[[], None]) -> None:
        """Make room for training: give back all GPUs; on CPUs drop the models and keep what was imported."""
        if self._gpu:
            self.stop()
        elif self._actors:
            ray.get([actor.run.remote(drop_models) for actor in self._actors])

    def stop(self) -> None:
        """End all workers; the next call starts others."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []

    def _new(self) -> Any:
        # Without num_cpus an actor is placed where a core is free and then holds none: training needs them all.
        options: dict[str, Any] = {"num_gpus": 1} if self._gpu else {"scheduling_strategy": "SPREAD"}
        actor: Any = ray.remote(**options)(PoolWorker)
        return actor.remote(self._threads, self._preload)

    def _replace(self, dead: Any) -> Any:
        new = self._new()
        self._actors = [new if actor is dead else actor for actor in self._actors]
        return new
