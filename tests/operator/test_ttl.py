"""spec.runPolicy.ttlSecondsAfterFinished."""

from __future__ import annotations

from scenarios import succeed
from simulation import World, make_job


def test_finished_job_is_deleted_when_its_ttl_expires() -> None:
    world = World(make_job(ttlSecondsAfterFinished=100))
    world.reconcile()
    succeed(world)
    world.reconcile()
    world.advance(99)
    world.reconcile()
    assert world.job
    assert world.observe().decide().requeue_after_seconds == 1
    world.advance(1)
    world.reconcile()
    assert world.job is None
