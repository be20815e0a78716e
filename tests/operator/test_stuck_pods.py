"""Pods that do not end, for example on a dead node, are reported with the remedy."""

from __future__ import annotations

import dataclasses
from datetime import timedelta

import pytest
from scenarios import Step, collect, conditions, lose_head, running, suspend
from simulation import World, make_job
from test_pods import pod

from dreambooth_api.status import Phase


def delete(world: World) -> None:
    world.delete()


ENDS: dict[str, tuple[Step, Phase]] = {
    "before a retry": (lose_head, Phase.RETRYING),
    "before the suspension": (suspend, Phase.SUSPENDING),
    "before the data is deleted": (delete, Phase.ERASING),
}


@pytest.mark.parametrize("name", ENDS)
def test_pod_that_does_not_end_is_reported_with_the_remedy(name: str) -> None:
    end, phase = ENDS[name]
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    end(world)
    world.pods = [dataclasses.replace(pod({}), ends=world.now + timedelta(seconds=30))]
    world.reconcile()
    assert world.status.phase is phase
    assert "node" not in world.status.message
    world.advance(149)
    world.reconcile()
    assert "node" not in world.status.message
    requeue = world.observe().decide().requeue_after_seconds
    assert requeue is not None
    assert requeue <= 1
    world.advance(1)
    world.reconcile()
    assert world.status.phase is phase
    assert world.status.message.startswith("Pod c-head on node n1 should have ended at 2026-11-24T06:00:30Z")
    assert "kubectl taint nodes n1 node.kubernetes.io/out-of-service=nodeshutdown:NoExecute" in world.status.message
    assert conditions(world)["ClusterReady"] == ("False", "PodStuck")
    writes = world.writes
    world.advance(60)
    world.reconcile()
    assert world.writes == writes, "the message does not change while the pod exists"
    assert world.events.count("PodStuck") == 1
    assert len(world.live) == 1, "no attempt starts"


def test_job_continues_when_the_pod_is_gone() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    lose_head(world)
    world.pods = [dataclasses.replace(pod({}), ends=world.now)]
    world.reconcile()
    world.advance(300)
    world.reconcile()
    world.pods = []
    collect(world)
    world.reconcile()
    assert world.status.phase is Phase.STARTING
    assert world.status.message == "The Ray cluster is being created."
