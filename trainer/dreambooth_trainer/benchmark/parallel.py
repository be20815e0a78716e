"""Work on several items at the same time, in threads."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from queue import SimpleQueue
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")
Worker = AbstractContextManager[Callable[[T], R]]
"""Entered and left in the thread that calls it."""


def in_parallel(
    items: Sequence[T], workers: Sequence[Worker[T, R]], interrupt: Callable[[], None], grace_seconds: float = 10.0
) -> Iterator[tuple[T, R]]:
    """Call each worker with one item after another, all at the same time. Yields items and results as they complete.

    One worker runs on the thread of the caller. After an error no further item begins. Those that have begun are
    completed and yielded, and then the error is raised.

    Args:
        interrupt: called if the caller stops before the end, for example by Ctrl-C. Workers then raise an error soon.
        grace_seconds: how long to wait for them then.
    """
    if len(workers) == 1:
        with workers[0] as call:
            for item in items:
                yield item, call(item)
        return
    outcomes: SimpleQueue[tuple[T, R] | None] = SimpleQueue()
    errors: list[BaseException] = []
    remaining, taking, stopped = list(reversed(items)), threading.Lock(), threading.Event()

    def take() -> list[T]:
        with taking:
            return [] if stopped.is_set() or not remaining else [remaining.pop()]

    def run(worker: Worker[T, R]) -> None:
        try:
            with worker as call:
                while item := take():
                    outcomes.put((item[0], call(item[0])))
        except BaseException as error:
            errors.append(error)
            stopped.set()
        finally:
            outcomes.put(None)

    # Daemons: the process can end although one does not.
    threads = [threading.Thread(target=run, args=(worker,), daemon=True) for worker in workers]
    for thread in threads:
        thread.start()
    running = len(threads)
    try:
        while running:
            outcome = outcomes.get()
            if outcome is None:
                running -= 1
            else:
                yield outcome
    finally:
        if running:
            stopped.set()
            interrupt()
            deadline = time.monotonic() + grace_seconds
            for thread in threads:
                thread.join(max(0.0, deadline - time.monotonic()))
    if errors:
        raise errors[0]
