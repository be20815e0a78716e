"""Jobs whose status a newer operator or trainer has written, read by this operator."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from simulation import World, make_job

from dreambooth_api.status import Phase, parse_status

SINCE = "2026-11-24T06:00:00Z"
CONDITION = {"status": "True", "reason": "Yes", "lastTransitionTime": SINCE}


def running_world() -> World:
    """A job whose first attempt runs."""
    world = World(make_job())
    world.reconcile()
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    return world


@pytest.mark.parametrize(
    "newer",
    [
        {"phase": "Checkpointing"},
        {"conditions": [{"type": "Certified", **CONDITION}, {"type": "Accepted", **CONDITION}]},
        {"conditions": [{"type": "Certified", **CONDITION}] * 12},
        {"report": {"attempt": 1, "phase": "Distill", "time": SINCE}},
        {"lastFailure": {"message": "without a reason"}},
        {"training": {"step": "many", "steps": 10}},
        {"activeSince": "yesterday"},
        {"sparsity": {"layers": 3}},
    ],
)
def test_newer_status_keeps_the_attempt(newer: dict[str, Any]) -> None:
    world = running_world()
    raw = {**world.status.model_dump(mode="json", by_alias=True, exclude_none=True), **newer}
    world._replace(status=parse_status(raw))
    world.reconcile()
    assert world.created == [world.ray_job], "no second attempt"
    assert not world.ray_jobs[world.ray_job].deleting
    assert (world.status.attempts, world.status.phase) == (1, Phase.RUNNING)
    assert world.status.start_time is not None


def test_known_values_beside_unknown_ones_are_kept() -> None:
    status = parse_status(
        {
            "conditions": [{"type": kind, **CONDITION} for kind in ("New", "Accepted", "Newer", "Trained")],
            "report": {"attempt": 2, "phase": "Distill", "time": SINCE},
            "training": {"step": 7, "steps": "all"},
        }
    )
    assert [condition.type for condition in status.conditions] == ["New", "Accepted", "Newer", "Trained"]
    assert status.report
    assert (status.report.attempt, status.report.phase) == (2, "Distill")
    assert status.training
    assert (status.training.step, status.training.steps) == (7, None)


@pytest.mark.parametrize("value", [5, "text", [1], {"a": [1]}, None])
def test_no_status_raises(value: object) -> None:
    fields = ("phase", "conditions", "report", "attempts", "training", "subjectScores", "lastFailure")
    parse_status({field: copy.deepcopy(value) for field in fields})
