"""spec.output.deletionPolicy."""

from __future__ import annotations

import dataclasses

from scenarios import conditions, messages, running
from simulation import World, make_job

from dreambooth_api.status import Failure, Phase
from dreambooth_operator.controller.actions import Create, Decision


def running_world() -> World:
    """A running job whose data is deleted with it."""
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    return world


def test_deletion_stops_the_pods_then_deletes_the_data_then_removes_the_finalizer() -> None:
    world = running_world()
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


def test_deletion_that_the_api_server_refuses_is_explained_and_retried_after_a_delay() -> None:
    """For example in a namespace that is being deleted, or by a quota."""
    world = running_world()
    world.delete()
    world.reconcile()
    world.collect()
    refused = Failure(reason="NetworkPolicyRefused", message="The API server rejected the NetworkPolicy: no.")

    def reconcile(failure: Failure | None) -> Decision:
        snapshot = world.observe()
        decision = dataclasses.replace(
            snapshot, observed=dataclasses.replace(snapshot.observed, create_failure=failure)
        ).decide()
        for action in decision.actions:
            if not isinstance(action, Create):
                world.act(snapshot, action, first=True)
        return decision

    assert creates(reconcile(None)), "its status is written first"
    for _ in range(2):
        assert not creates(reconcile(refused))
        assert conditions(world)["Erased"] == ("False", "NetworkPolicyRefused")
        assert "rejected the NetworkPolicy: no" in messages(world)["Erased"]
        assert "rejected the NetworkPolicy: no" in world.status.message
        waiting = reconcile(None)
        assert (waiting.actions, waiting.requeue_after_seconds) == ((), 60)
        world.advance(61)
        assert creates(reconcile(None))
    world.reconcile()
    assert world.erase
    world.reconcile()
    assert world.status.message == "The job is being deleted: a pod is deleting its data."


def creates(decision: Decision) -> bool:
    return any(isinstance(action, Create) for action in decision.actions)


def test_deletion_does_not_wait_for_a_ray_job_of_somebody_else() -> None:
    world = running_world()
    name, ray_job = next(iter(world.ray_jobs.items()))
    world.ray_jobs[f"{name}-x"] = dataclasses.replace(ray_job, name=f"{name}-x", owner_uid="u2", uid="r9")
    world.delete()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.erase


def test_job_waits_for_the_pods_of_a_deleted_job_of_its_name() -> None:
    """They may still write to the folder that both jobs have."""
    world = running_world()
    (old,) = world.ray_jobs.values()
    again = World(make_job())
    again.ray_jobs["old"] = dataclasses.replace(old, name="old", owner_uid="u0", deleting=True)
    again.reconcile()
    assert not again.created
    again.ray_jobs.clear()
    again.reconcile()
    assert len(again.created) == 1
