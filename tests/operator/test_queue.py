"""WorkQueue: its invariants, also under random operations."""

from __future__ import annotations

import asyncio
import random
import time
from collections import Counter

import pytest

from dreambooth_operator.machinery.queue import WorkQueue


async def test_key_is_queued_only_once() -> None:
    queue: WorkQueue[str] = WorkQueue()
    for _ in range(3):
        queue.add("a")
    assert len(queue) == 1
    assert await queue.get() == "a"
    queue.add("a")
    queue.add("a")
    assert len(queue) == 0, "not while it is being processed"
    queue.done("a")
    assert len(queue) == 1, "but once afterwards"


async def test_shortest_delay_applies() -> None:
    queue: WorkQueue[str] = WorkQueue()
    queue.add_after("a", 60)
    queue.add_after("a", 0.01)
    queue.add_after("a", 30)
    assert queue.delayed == 1
    async with asyncio.timeout(1):
        assert await queue.get() == "a"
    assert queue.delayed == 0


async def test_retries_back_off_until_success() -> None:
    queue: WorkQueue[str] = WorkQueue(first_retry_seconds=1, max_retry_seconds=5, jitter=lambda: 1.0)
    assert [queue.retry("a") for _ in range(5)] == [1, 2, 4, 5, 5]
    queue.succeeded("a")
    assert queue.retry("a") == 1


@pytest.mark.parametrize("seed", range(5))
async def test_no_change_is_lost_and_no_key_is_processed_concurrently(seed: int) -> None:
    rng = random.Random(seed)
    queue: WorkQueue[int] = WorkQueue(first_retry_seconds=0.001, max_retry_seconds=0.01)
    wanted: Counter[int] = Counter()  # current version of each key
    seen: Counter[int] = Counter()  # version that the last worker observed
    busy: set[int] = set()

    async def work() -> None:
        while True:
            key = await queue.get()
            assert key not in busy
            busy.add(key)
            seen[key] = wanted[key]
            await asyncio.sleep(rng.random() * 0.003)
            busy.discard(key)
            if rng.random() < 0.2:
                queue.retry(key)
            queue.done(key)

    workers = [asyncio.create_task(work()) for _ in range(4)]
    for _ in range(300):
        key = rng.randrange(8)
        wanted[key] += 1
        if rng.random() < 0.7:
            queue.add(key)
        else:
            queue.add_after(key, rng.random() * 0.005)
        await asyncio.sleep(rng.random() * 0.002)
    deadline = time.monotonic() + 10
    while seen != wanted and time.monotonic() < deadline:
        await asyncio.sleep(0.01)
    for worker in workers:
        worker.cancel()
    assert seen == wanted
