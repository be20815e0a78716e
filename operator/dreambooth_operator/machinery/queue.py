"""A work queue of keys for level-triggered reconciliation.

Invariants, for any order of calls:
- a key is processed by at most one worker at a time;
- a key that is added while it is being processed is processed again after `done`;
- a key is in the queue at most once, no matter how often it is added;
- of several delays of a key, the shortest one applies, and `add` overrides them all.
The queue belongs to one event loop and is not thread-safe.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """The queue. `jitter` returns a factor for each retry delay; tests pass a constant."""

    def __init__(
        self,
        *,
        first_retry_seconds: float = 0.2,
        max_retry_seconds: float = 120.0,
        jitter: Callable[[], float] = lambda: random.uniform(1.0, 1.2),  # noqa: S311 - spreads load
    ) -> None:
        self._first_seconds = first_retry_seconds
        self._max_seconds = max_retry_seconds
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()  # in _ready, or to be added to it by done()
        self._working: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """Number of keys with a delay."""
        return len(self._timers)

    def add(self, key: K) -> None:
        """Process the key as soon as possible."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Process the key after a delay, unless it is added earlier."""
        if seconds <= 0:
            self.add(key)
            return
        loop = asyncio.get_running_loop()
        due = loop.time() + seconds
        if waiting := self._timers.get(key):
            if waiting.when() <= due:
                return
            waiting.cancel()
        self._timers[key] = loop.call_at(due, self._due, key)

    def retry(self, key: K) -> float:
        """Add the key after a delay that doubles with each consecutive failure. Returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(self._max_seconds, self._first_seconds * 2 ** min(failures, 30)) * self._jitter()
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: K) -> None:
        """Reset the retry delay of a key."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """Wait for the next key. The caller must call `done` with it, even if processing fails."""
        while not self._ready:
            self._wake.clear()
            await self._wake.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """Finish the processing of a key that `get` returned."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
