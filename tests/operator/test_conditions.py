"""Conditions of a job, from the state of its cluster and the reports of its trainer."""

from __future__ import annotations

import dataclasses

from scenarios import conditions, fail, messages, report_published, running, succeed
from simulation import World, make_job

from dreambooth_api.status import TrainerPhase


def test_progress_is_reflected_in_conditions() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.report(TrainerPhase.TRAIN)
    world.reconcile()
    found = conditions(world)
    assert found["ClusterReady"] == ("True", "Ready")
    assert found["ClassImagesReady"] == ("True", "Done")
    assert found["Trained"] == ("False", "InProgress")
    assert found["Published"] == ("False", "Waiting")
    times = [c.last_transition_time for c in world.status.conditions]
    world.advance(50)
    world.report(TrainerPhase.TRAIN)
    writes = world.writes
    world.reconcile()
    assert world.writes == writes, "a step alone causes no write"
    assert [c.last_transition_time for c in world.status.conditions] == times


def world_without_evaluation() -> World:
    job = make_job()
    assert job.spec
    spec = job.spec.model_copy(update={"evaluation": job.spec.evaluation.model_copy(update={"enabled": False})})
    return World(dataclasses.replace(job, spec=spec))


def test_disabled_phases_are_skipped() -> None:
    world = world_without_evaluation()
    world.reconcile()
    world.report(TrainerPhase.PUBLISH)
    succeed(world)
    world.reconcile()
    found = conditions(world)
    assert found["ClassImagesReady"] == found["Trained"] == ("True", "Done")
    assert found["Evaluated"] == ("True", "Skipped")
    assert found["Published"] == ("Unknown", "NotReported")


def test_class_images_are_skipped_in_modes_without_them() -> None:
    job = make_job()
    assert job.spec
    preservation = job.spec.prior_preservation.model_copy(update={"mode": "Prediction"})
    spec = job.spec.model_copy(update={"prior_preservation": preservation})
    world = World(dataclasses.replace(job, spec=spec))
    world.reconcile()
    running(world)
    world.report(TrainerPhase.TRAIN)
    world.reconcile()
    assert conditions(world)["ClassImagesReady"] == ("True", "Skipped")


def test_conditions_are_unknown_until_they_are_reported() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    succeed(world)
    world.reconcile()
    kinds = ("ClassImagesReady", "Trained", "Evaluated", "Published")
    assert {conditions(world)[kind] for kind in kinds} == {("Unknown", "NotReported")}
    assert conditions(world)["Succeeded"] == ("True", "Succeeded")
    assert "its last report did not arrive" in messages(world)["Published"]
    assert "kubectl dreambooth images" in messages(world)["Succeeded"]
    assert "s3://" not in messages(world)["Succeeded"], "a location that was not reported"
    world.report(TrainerPhase.EVALUATE)
    world.reconcile()
    assert [conditions(world)[kind][0] for kind in kinds] == ["True", "True", "Unknown", "Unknown"]
    world.report(scores={"dino": 0.7})
    world.reconcile()
    assert conditions(world)["Evaluated"] == ("True", "Done")
    report_published(world)
    world.reconcile()
    assert conditions(world)["Published"] == ("True", "Published")
    assert messages(world)["Succeeded"] == "The model was published to s3://b/out/model."
    times = {str(c.type): c.last_transition_time for c in world.status.conditions}
    assert times["Succeeded"] == world.status.completion_time


def test_reports_of_an_earlier_attempt_do_not_count_for_a_later_one() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    report_published(world)
    world.reconcile()
    fail(world)
    world.reconcile()
    world.advance(11)
    world.collect()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.status.attempts == 2
    assert not world.report_all(attempt=1), "the status server rejects reports of an earlier attempt"
    succeed(world)
    world.reconcile()
    assert conditions(world)["Evaluated"] == conditions(world)["Published"] == ("Unknown", "NotReported")
    world.report(TrainerPhase.PUBLISH)
    assert world.status.scores is None
    assert world.status.output is None
    world.reconcile()
    assert conditions(world)["Trained"] == ("True", "Done")
    assert conditions(world)["Evaluated"] == conditions(world)["Published"] == ("Unknown", "NotReported")
