"""A status with words and values that only a newer version knows."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from devcluster import ControlPlane
from scenarios import conditions, running
from simulation import World, make_job

from dreambooth_api.status import JobStatus, Phase, TrainerPhase, parse_status

NEW_CONDITION = {
    "type": "Uploaded", "status": "True", "reason": "Uploaded", "lastTransitionTime": "2026-11-24T06:00:00Z",
}  # fmt: skip


def as_read(world: World, **changes: object) -> None:
    """The status of the job as an older operator reads it, after a newer one has written `changes`."""
    assert world.job
    written = world.status.model_dump(mode="json", by_alias=True, exclude_none=True) | changes
    world.job = dataclasses.replace(world.job, status=parse_status(written))


def running_world() -> World:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.report(TrainerPhase.TRAIN)
    world.reconcile()
    return world


def test_unknown_phase_continues_the_open_attempt() -> None:
    world = running_world()
    as_read(world, phase="Uploading")
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    assert world.status.attempts == len(world.created) == 1
    world.succeed()
    world.reconcile()
    assert world.status.phase is Phase.SUCCEEDED


@pytest.mark.parametrize(
    ("status", "phase"),
    [
        ({}, Phase.PENDING),
        ({"attempts": 1, "rayJobName": "r"}, Phase.STARTING),
        ({"attempts": 1, "nextAttemptTime": "2026-11-24T06:00:00Z"}, Phase.RETRYING),
        ({"attempts": 1, "conditions": [NEW_CONDITION | {"type": "Succeeded"}]}, Phase.SUCCEEDED),
        ({"attempts": 1, "conditions": [NEW_CONDITION | {"type": "Failed"}]}, Phase.FAILED),
    ],
)
def test_unknown_phase_is_presumed_from_the_rest(status: dict[str, Any], phase: Phase) -> None:
    assert parse_status({"phase": "Uploading", **status}).phase is phase


def test_unknown_condition_is_kept() -> None:
    world = running_world()
    as_read(world, conditions=[NEW_CONDITION])
    world.reconcile()
    found = conditions(world)
    assert found["ClusterReady"] == ("True", "Ready")
    assert list(found)[-1] == "Uploaded"


def test_unknown_phase_of_the_trainer_keeps_the_conditions() -> None:
    world = running_world()
    before = conditions(world)
    as_read(world, report={"attempt": 1, "phase": "Distill", "time": "2026-11-24T06:00:00Z"})
    world.reconcile()
    assert conditions(world) == before
    assert world.status.message == "The trainer is in phase Distill."
    assert world.status.report
    assert world.status.report.phase == "Distill"


def test_invalid_value_costs_only_itself() -> None:
    broken = {**NEW_CONDITION, "status": "Maybe"}
    status = {
        "phase": "Running", "attempts": 3, "failures": -1, "rayJobName": "r", "message": "x" * 9999,
        "conditions": [broken, NEW_CONDITION, broken], "training": {"step": 5, "loss": "low"}, "newField": {"a": 1},
    }  # fmt: skip
    read = parse_status(status)
    assert (read.phase, read.attempts, read.failures, read.ray_job_name) == (Phase.RUNNING, 3, 0, "r")
    assert [condition.type for condition in read.conditions] == ["Uploaded"]
    assert read.training
    assert read.training.step == 5


@pytest.mark.parametrize("status", [{"conditions": 5}, {"report": []}, {"phase": 7}, {"attempts": None}])
def test_status_of_wrong_types_is_read(status: dict[str, Any]) -> None:
    assert parse_status(status) == JobStatus()


def test_api_server_accepts_words_of_a_newer_version(plane: ControlPlane, namespace: str) -> None:
    spec = {"subject": {"images": {"uri": "s3://b/dog"}, "class": "dog"}}
    metadata = {"name": "skew", "namespace": namespace}
    plane.apply({"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": metadata, "spec": spec})
    status = {"phase": "Uploading", "conditions": [NEW_CONDITION], "report": {"attempt": 1, "phase": "Distill"}}
    change = json.dumps({"status": status})
    plane.kubectl("patch", "dbj", "skew", "-n", namespace, "--subresource=status", "--type=merge", "-p", change)
    assert parse_status(plane.get("dbj", "skew", "-n", namespace)["status"]).conditions[0].type == "Uploaded"
