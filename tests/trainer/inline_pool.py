"""A worker pool without Ray."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from dreambooth_trainer.cluster.dispatch import PoolSize


class InlinePool:
    """Runs calls in this process, one after the other, and records the names of their functions."""

    def __init__(self, workers: int = 2) -> None:
        self.workers, self.calls = workers, list[str]()

    def size(self) -> PoolSize:
        return PoolSize(self.workers, threads=1)

    def map(
        self, function: Callable[..., Any], calls: Iterable[tuple[Any, ...]], *, calls_per_worker: int = 1
    ) -> Iterator[Any]:
        for arguments in calls:
            self.calls.append(function.__name__)
            yield function(*arguments)

    def call(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return next(self.map(function, [arguments]))
