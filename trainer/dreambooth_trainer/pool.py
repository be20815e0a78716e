"""The processes that draw, encode and score: one a GPU, or a few on CPUs, started once for a whole job.

A process needs ten seconds of CPU and more to import diffusers, so phases do not each start their own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import ray
from ray.util import ActorPool


class PoolWorker:
    """A Ray actor that runs functions, one at a time; what they cache in their modules stays between calls."""

    def __init__(self, threads: int) -> None:
        # What takes long, while the driver still prepares images.
        import torch

        import dreambooth_trainer.families.stable_diffusion  # noqa: F401

        torch.set_num_threads(threads)

    def run(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Call a function of a module that workers can import."""
        return function(*arguments)


class WorkerPool:
    """The workers of one run. Ray restarts a dead one and repeats its call, so a call must be repeatable.

    Args:
        workers: of the job; on a cluster without GPUs at least two share the cores.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._actors: list[Any] = []

    def start(self) -> list[Any]:
        """The actors, started if they are not; returns at once, while they import."""
        if not self._actors:
            resources = ray.cluster_resources()
            gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
            count = gpus or max(1, min(cpus, max(self._workers, 2)))
            # Without num_cpus an actor is placed where a core is free and then holds none: training needs them all.
            options: dict[str, Any] = {"num_gpus": 1} if gpus else {"scheduling_strategy": "SPREAD"}
            actor: Any = ray.remote(max_restarts=5, max_task_retries=5, **options)(PoolWorker)
            self._actors = [actor.remote(max(1, cpus // count)) for _ in range(count)]
        return self._actors

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Run a function on one worker, on its GPU if it has one."""
        return ray.get(self.start()[0].run.remote(function, *arguments))

    def map(self, function: Callable[..., Any], orders: Iterable[tuple[Any, ...]]) -> Iterator[Any]:
        """Run a function once for each tuple of arguments, on whichever worker is free; results as they come."""
        pool = ActorPool(self.start())
        return pool.map_unordered(lambda actor, order: actor.run.remote(function, *order), list(orders))

    def free_gpus(self) -> None:
        """Make room for others. Workers without a GPU take none and stay, with all they have imported."""
        if ray.cluster_resources().get("GPU"):
            self.stop()

    def stop(self) -> None:
        """End all workers; the next call starts others."""
        for actor in self._actors:
            ray.kill(actor)
        self._actors = []
