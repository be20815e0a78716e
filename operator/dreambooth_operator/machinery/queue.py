"""A queue of keys for level-triggered work.

Invariants, for any order of calls:
- a key is handed to one worker at a time;
- a key added while it is being worked on is handed out once more after `done`;
- a key waits at most once in the queue, however often it is added;
- of several delays for a key, the earliest counts, and `add` beats them all.
All of it belongs to one event loop; nothing here is thread-safe.
"""

from __future__ import annotations

import asyncio
import random
from collections import deque
from collections.abc import Callable
from typing import Generic, TypeVar

K = TypeVar("K")


class WorkQueue(Generic[K]):
    """See the module. `jitter` answers a factor for each back-off; tests pass a constant."""

    def __init__(
        self,
        *,
        first_retry_seconds: float = 0.2,
        most_retry_seconds: float = 120.0,
        jitter: Callable[[], float] = lambda: random.uniform(1.0, 1.2),  # noqa: S311 - spreads load
    ) -> None:
        self._first = first_retry_seconds
        self._most = most_retry_seconds
        self._jitter = jitter
        self._ready: deque[K] = deque()
        self._dirty: set[K] = set()  # in _ready, or to go there when its worker is done
        self._working: set[K] = set()
        self._timers: dict[K, asyncio.TimerHandle] = {}
        self._failures: dict[K, int] = {}
        self._wake = asyncio.Event()

    def __len__(self) -> int:
        return len(self._ready)

    @property
    def delayed(self) -> int:
        """How many keys wait for their time."""
        return len(self._timers)

    def add(self, key: K) -> None:
        """Hand the key out as soon as may be."""
        if timer := self._timers.pop(key, None):
            timer.cancel()
        if key in self._dirty:
            return
        self._dirty.add(key)
        if key not in self._working:
            self._ready.append(key)
            self._wake.set()

    def add_after(self, key: K, seconds: float) -> None:
        """Hand the key out in so many seconds, unless it is added sooner."""
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
        """Add after a delay that doubles with each failure in a row; returns the delay in seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        seconds = min(self._most, self._first * 2 ** min(failures, 30)) * self._jitter()
        self.add_after(key, seconds)
        return seconds

    def succeeded(self, key: K) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    async def get(self) -> K:
        """The next key; call `done` with it when the work is over, come what may."""
        while not self._ready:
            self._wake.clear()
            await self._wake.wait()
        key = self._ready.popleft()
        self._dirty.discard(key)
        self._working.add(key)
        return key

    def done(self, key: K) -> None:
        """The work on a key that `get` answered is over."""
        self._working.discard(key)
        if key in self._dirty:
            self._ready.append(key)
            self._wake.set()

    def _due(self, key: K) -> None:
        self._timers.pop(key, None)
        self.add(key)
