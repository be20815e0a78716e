"""The pool on a cluster that grows and shrinks while it runs calls."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from fake_ray import FakeActor, FakeRay
from ray.exceptions import ActorUnavailableError, RayActorError
from test_hardware import run_on_fake_cluster

from dreambooth_api.job import Cluster
from dreambooth_trainer.cluster import pool
from dreambooth_trainer.cluster.dispatch import PoolSize
from dreambooth_trainer.cluster.hardware import requested_cpus
from dreambooth_trainer.cluster.pool import MAX_RETRIES, PoolWorker, WorkerPool


@pytest.fixture
def fake_ray(monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """A cluster with two cores."""
    fake = FakeRay(CPU=2)
    monkeypatch.setattr(pool, "ray", fake)
    return fake


def number_of(actor: FakeActor, call: int) -> tuple[int, int]:
    return actor.number, call


def test_workers_start_when_nodes_join(fake_ray: FakeRay) -> None:
    ran: list[tuple[int, int]] = []
    for result in WorkerPool(4).map(number_of, ((call,) for call in range(20)), calls_per_worker=2):
        ran.append(result)
        if len(ran) == 6:
            fake_ray.resources["CPU"] = 3
    assert sorted(call for _, call in ran) == list(range(20))
    assert {actor for actor, _ in ran[:6]} == {0, 1}
    assert {actor for actor, _ in ran} == {0, 1, 2}


def test_the_calls_of_a_dead_worker_run_again(fake_ray: FakeRay) -> None:
    attempts: list[int] = []

    def fail_once(actor: FakeActor, call: int) -> int:
        attempts.append(call)
        if call == 3 and attempts.count(3) == 1:
            actor.die()
        return call

    calls = ((call,) for call in range(8))
    assert sorted(WorkerPool(2).map(fail_once, calls, calls_per_worker=2)) == list(range(8))
    assert attempts.count(3) == 2
    assert len(fake_ray.actors) == 3, "one replacement"


def test_a_worker_that_cannot_be_reached_is_killed(fake_ray: FakeRay) -> None:
    """It may live and keep its GPU, which its replacement would wait for."""

    def fail_once(actor: FakeActor, call: int) -> int:
        if actor.number == 0:
            raise ActorUnavailableError("the connection was lost", None)
        return call

    fake_ray.resources = {"CPU": 8, "GPU": 1}
    assert list(WorkerPool(1, gpu=True).map(fail_once, [(7,)])) == [7]
    assert fake_ray.killed == fake_ray.actors[:1]


def test_models_are_released_although_a_worker_has_died(fake_ray: FakeRay) -> None:
    released: list[Any] = []
    workers = WorkerPool(2)
    workers.free_memory(lambda: None)
    assert not fake_ray.actors
    first, second = workers.start()
    first.alive = False
    workers.free_memory(released.append)
    assert released == [second]
    assert len(workers.start()) == 2
    assert len(fake_ray.actors) == 3, "one replacement"


def test_an_interrupt_ends_the_wait_for_models_to_be_released(
    fake_ray: FakeRay, monkeypatch: pytest.MonkeyPatch
) -> None:
    def raise_interrupt() -> None:
        raise KeyboardInterrupt

    workers = WorkerPool(2)
    workers.start()
    monkeypatch.setattr(pool, "check_interrupted", raise_interrupt)
    with pytest.raises(KeyboardInterrupt):
        workers.free_memory(lambda _: pytest.fail("it is not waited for"))


def test_a_call_that_kills_every_worker_fails(fake_ray: FakeRay) -> None:
    def fail(actor: FakeActor) -> Any:
        actor.die()

    with pytest.raises(RayActorError):
        WorkerPool(2).call(fail)
    assert len(fake_ray.actors) == MAX_RETRIES + 2


def test_workers_that_cannot_start_are_an_error(fake_ray: FakeRay) -> None:
    fake_ray.can_start = False
    with pytest.raises(RayActorError):
        WorkerPool(2).call(number_of, 1)
    assert len(fake_ray.actors) <= MAX_RETRIES + 2


def test_no_worker_starts_without_calls(fake_ray: FakeRay) -> None:
    assert list(WorkerPool(2).map(number_of, [])) == []
    assert not fake_ray.actors


def test_actors_wait_for_gpus_that_may_join(fake_ray: FakeRay) -> None:
    fake_ray.resources = {"CPU": 8, "GPU": 1}
    waiting = WorkerPool(4, gpu=True)
    assert len(waiting.start()) == 4
    assert waiting.size().workers == 1


@pytest.mark.trainer
def test_the_pool_uses_nodes_that_join_and_survives_the_loss_of_a_node() -> None:
    result = run_on_fake_cluster("elastic_cluster")
    assert result["calls"] == 30
    assert result["first lost"]
    first, second = result["nodes"]
    assert first >= 4
    assert second >= 4


@pytest.mark.parametrize(
    ("spec", "cores"),
    [
        ({}, None),
        ({"workers": 3, "resources": {"cpu": "1500m"}}, 4.5),
        ({"elastic": {"minWorkers": 1, "maxWorkers": 4}, "resources": {"cpu": "8"}}, 32),
    ],
)
def test_a_job_requests_cores_for_all_of_its_workers(spec: dict[str, object], cores: float | None) -> None:
    assert requested_cpus(Cluster.model_validate(spec)) == cores


def test_a_pool_of_one_of_two_jobs_has_half_of_the_cores(fake_ray: FakeRay) -> None:
    fake_ray.resources["CPU"] = 8
    assert (WorkerPool(2).size(), WorkerPool(2, jobs=2).size()) == (PoolSize(2, 4), PoolSize(2, 2))
    assert (WorkerPool(2).cores(), WorkerPool(2, jobs=2).cores()) == (8, 4)


def test_collections_do_not_look_at_what_a_worker_has_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    imported: list[bool] = []
    monkeypatch.setattr("gc.freeze", lambda: imported.append("colorsys" in sys.modules))
    monkeypatch.setattr("torch.set_num_threads", lambda _: None)
    PoolWorker(1, "colorsys")
    assert imported == [True], "frozen after the imports"
