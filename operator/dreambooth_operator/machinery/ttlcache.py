"""A bounded cache whose entries expire."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class TtlCache(Generic[K, V]):
    """Entries expire `ttl_seconds` after they were set. Beyond `max_entries`, the oldest are removed.

    All entries live equally long, so their order is also that of their expiry, and no operation visits other entries
    than those that it removes. An OrderedDict, because the removal of the first key of a dict searches for it among all
    keys that were removed before.
    """

    def __init__(self, *, ttl_seconds: float, max_entries: int, clock: Callable[[], float]) -> None:
        self._ttl_seconds = ttl_seconds
        self._max_entries = max_entries
        self._clock = clock
        self._entries: OrderedDict[K, tuple[float, V]] = OrderedDict()  # when each expires, and its value

    def __len__(self) -> int:
        """Number of entries that have not expired."""
        self._remove_expired()
        return len(self._entries)

    def get(self, key: K) -> V | None:
        """The value of `key`; None if it was not set or has expired."""
        expires, value = self._entries.get(key, (0.0, None))
        return value if value is not None and self._clock() < expires else None

    def set(self, key: K, value: V) -> None:
        """Set a value, which replaces the one before."""
        self._entries[key] = (self._clock() + self._ttl_seconds, value)
        self._entries.move_to_end(key)
        self._remove_expired()
        while len(self._entries) > self._max_entries:
            self._entries.popitem(last=False)

    def _remove_expired(self) -> None:
        now = self._clock()
        while self._entries and next(iter(self._entries.values()))[0] <= now:
            self._entries.popitem(last=False)
