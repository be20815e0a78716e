"""Assignment of calls to workers that come and go, and the size of a pool."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import pytest

from dreambooth_trainer.cluster.dispatch import Call, Dispatcher, PoolSize, pool_size, share_of_cores

GPUS = {"CPU": 16.0, "GPU": 8.0}


@pytest.mark.parametrize(
    ("resources", "processes", "gpu", "max_cpus", "size"),
    [
        (GPUS, 8, True, None, PoolSize(8, 2)),
        (GPUS, 6, True, None, PoolSize(6, 2)),
        (GPUS, 16, True, None, PoolSize(8, 2)),
        ({"CPU": 2.0}, 4, True, None, PoolSize(1, 2)),
        ({"CPU": 16.0}, 4, False, None, PoolSize(4, 4)),
        ({"CPU": 2.0}, 4, False, None, PoolSize(2, 1)),
        ({}, 4, False, None, PoolSize(1, 1)),
        # A shared cluster with 64 cores and 16 GPUs, of which the job requested some.
        ({"CPU": 64.0}, 2, False, 8, PoolSize(2, 4)),
        ({"CPU": 64.0}, 2, False, 1.5, PoolSize(1, 1)),
        ({"CPU": 64.0, "GPU": 16.0}, 4, True, 16, PoolSize(4, 4)),
    ],
)
def test_a_pool_takes_what_the_cluster_has_and_the_job_requested(
    resources: dict[str, float], processes: int, gpu: bool, max_cpus: float | None, size: PoolSize
) -> None:
    assert pool_size(resources, processes, share_of_cores(resources, max_cpus), gpu=gpu) == size


@pytest.mark.parametrize(("max_cpus", "jobs", "cores"), [(None, 2, 32), (None, 100, 1), (24, 2, 12), (None, 1, 64)])
def test_jobs_at_the_same_time_have_equal_shares_of_the_cores(max_cpus: float | None, jobs: int, cores: int) -> None:
    assert share_of_cores({"CPU": 64.0}, max_cpus, jobs) == cores


def test_calls_are_read_as_workers_become_free() -> None:
    read: list[int] = []

    def calls() -> Iterator[tuple[int]]:
        for number in range(100_000):
            read.append(number)
            yield (number,)

    dispatcher: Dispatcher[str] = Dispatcher(calls(), calls_per_worker=2)
    assert list(dispatcher.assignments()) == []
    dispatcher.add("a")
    dispatcher.add("b")
    assert [worker for worker, _ in dispatcher.assignments()] == ["a", "b", "a", "b"]
    dispatcher.finish("b")
    assert list(dispatcher.assignments()) == [("b", Call((4,)))]
    assert len(read) <= 6


def test_the_calls_of_a_lost_worker_go_to_another() -> None:
    dispatcher: Dispatcher[str] = Dispatcher([(1,), (2,)], calls_per_worker=2)
    dispatcher.add("a")
    for worker, call in list(dispatcher.assignments()):
        dispatcher.lose(worker, call)
    assert list(dispatcher.assignments()) == []
    assert dispatcher.has_calls()
    dispatcher.add("b")
    assert list(dispatcher.assignments()) == [("b", Call((1,), losses=1)), ("b", Call((2,), losses=1))]
    assert not dispatcher.has_calls()


@pytest.mark.parametrize("seed", range(20))
def test_every_call_is_run_once_whatever_workers_do(seed: int) -> None:
    random = Random(seed)
    dispatcher: Dispatcher[int] = Dispatcher(((number,) for number in range(50)), random.choice([1, 2]))
    running: list[tuple[int, Call]] = []
    workers, finished = 0, list[int]()
    while running or dispatcher.has_calls():
        if not running or random.random() < 0.2:
            dispatcher.add(workers)
            workers += 1
        running += dispatcher.assignments()
        random.shuffle(running)
        worker, call = running.pop()
        if random.random() < 0.2:
            lost = [pair for pair in running if pair[0] == worker]
            running = [pair for pair in running if pair[0] != worker]
            for owner, lost_call in [(worker, call), *lost]:
                dispatcher.lose(owner, lost_call)
        else:
            dispatcher.finish(worker)
            finished.append(call.arguments[0])
    assert sorted(finished) == list(range(50))
