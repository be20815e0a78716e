"""spec.output.deletionPolicy."""

from __future__ import annotations

import dataclasses

from scenarios import conditions, messages, running
from simulation import World, make_job

from dreambooth_api.status import Phase


def test_deletion_stops_the_pods_then_deletes_the_data_then_removes_the_finalizer() -> None:
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    world.delete()
    world.reconcile()
    assert world.status.phase is Phase.ERASING
    assert world.erase is None, "pods may still write"
    world.collect()
    world.reconcile()
    assert world.erase
    world.erase = dataclasses.replace(world.erase, failed=True, message="no route to bucket.")
    world.reconcile()
    assert world.job, "the job exists until its data is deleted"
    assert "no route to bucket" in messages(world)["Erased"]
    assert conditions(world)["Erased"][0] == "False"
    world.advance(61)
    world.reconcile()
    world.reconcile()
    assert not world.erase.failed, "the deletion is retried"
    world.erase = dataclasses.replace(world.erase, succeeded=True)
    world.reconcile()
    assert world.job is None
    assert world.events[-1] == "Erased"
