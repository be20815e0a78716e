"""The cache with expiry: its bound, and its cost by the number of keys that it visits."""

from __future__ import annotations

import pytest

from dreambooth_operator.machinery.ttlcache import TtlCache


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


class CountedKey:
    """A key that counts how often any key is hashed. A visit of all entries that rebuilds the cache hashes each."""

    hashed = 0

    def __init__(self, number: int) -> None:
        self.number = number

    def __hash__(self) -> int:
        CountedKey.hashed += 1
        return self.number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CountedKey) and self.number == other.number


def make(clock: Clock, *, ttl_seconds: float = 60, max_entries: int = 10) -> TtlCache[int, str]:
    return TtlCache(ttl_seconds=ttl_seconds, max_entries=max_entries, clock=clock)


def test_entry_expires() -> None:
    clock = Clock()
    cache = make(clock)
    cache.set(1, "a")
    clock.now += 59
    cache.set(2, "b")
    assert (cache.get(1), cache.get(2), cache.get(3), len(cache)) == ("a", "b", None, 2)
    clock.now += 1
    assert (cache.get(1), cache.get(2), len(cache)) == (None, "b", 1)


def test_entry_that_is_set_again_lives_longer_and_has_the_new_value() -> None:
    clock = Clock()
    cache = make(clock)
    cache.set(1, "a")
    clock.now += 30
    cache.set(2, "b")
    cache.set(1, "c")
    clock.now += 59
    assert (cache.get(1), len(cache)) == ("c", 2)


def test_oldest_entries_are_removed_beyond_the_bound() -> None:
    cache = make(Clock(), max_entries=3)
    for number in (1, 2, 3, 1, 4):
        cache.set(number, str(number))
    assert [cache.get(number) for number in (1, 2, 3, 4)] == ["1", None, "3", "4"]
    assert len(cache) == 3


def test_clock_that_goes_back_removes_nothing() -> None:
    clock = Clock()
    cache = make(clock)
    cache.set(1, "a")
    clock.now -= 500
    cache.set(2, "b")
    assert len(cache) == 2


@pytest.mark.parametrize("entries", [100, 10_000])
@pytest.mark.parametrize("full", [True, False], ids=["evicting", "expiring"])
def test_cost_of_an_operation_does_not_depend_on_the_size(entries: int, full: bool) -> None:
    """Each of them hashes its own key and those that it removes. The number of comparisons follows from that."""
    clock = Clock()
    max_entries = entries if full else 10 * entries
    cache: TtlCache[CountedKey, bool] = TtlCache(ttl_seconds=entries, max_entries=max_entries, clock=clock)
    for number in range(3 * entries):
        clock.now += 1
        cache.set(CountedKey(number), True)
        assert len(cache) <= entries
    CountedKey.hashed = 0
    for number in range(3 * entries, 6 * entries):
        clock.now += 1
        cache.set(CountedKey(number), True)
        assert cache.get(CountedKey(number))
        assert len(cache) <= entries
    assert CountedKey.hashed <= 8 * 3 * entries
