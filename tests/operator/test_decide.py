"""decide(): its ends, each interrupted at every step, and random lives with a logged seed."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable

import pytest
from simulation import RUNTIME, SETTINGS, StaleError, World, make_job

from dreambooth_api.status import TERMINAL, ConditionType, Failure, Phase, TrainerPhase
from dreambooth_operator.controller.draft import WriteStatus
from dreambooth_operator.controller.states import OPEN, TRANSITIONS, check_transition

Step = Callable[[World], None]


def running(world: World) -> None:
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")


def succeed(world: World) -> None:
    world.succeed()


def fail(world: World) -> None:
    world.fail()


def user_error(world: World) -> None:
    world.fail(exit_code=2)


def wait(seconds: float) -> Step:
    return lambda world: world.pass_time(seconds)


def suspend(world: World) -> None:
    world.set_policy(suspend=True)


def resume(world: World) -> None:
    world.set_policy(suspend=False)


def collect(world: World) -> None:
    world.collect()


def delete_by_hand(world: World) -> None:
    del world.ray_jobs[world.ray_job]
    if world.status.ray_job_uid is None:  # before anybody saw it: as if it had never been created
        world.created.remove(world.ray_job)


def head_dies(world: World) -> None:
    world.clusters[world.ray_job] = world.clusters[world.ray_job].__class__(
        **{**_fields(world), "head_ready": False, "head_gone": True}
    )


def _fields(world: World) -> dict[str, object]:
    cluster = world.clusters[world.ray_job]
    return {name: getattr(cluster, name) for name in cluster.__slots__}


def queue_admits(world: World) -> None:
    world.kuberay(world.ray_job, suspended=False)


def queue_preempts(world: World) -> None:
    world.kuberay(world.ray_job, suspended=True, deployment="Suspended", job="")


def trainer_gives_up(world: World) -> None:
    world.report(failure=Failure(reason="BadImages", message="images/1.png is no image", retryable=False))
    world.fail()


def published(world: World) -> None:
    """The last report, in time or late: in the tests of interruptions it may come before or after the end."""
    world.report_all()


BAD_IMAGES = Failure(reason="BadImages", message="images/1.png is no image", retryable=False)
OUT_OF_MEMORY = Failure(reason="OutOfMemory", message="32 GiB are too little", retryable=True)


def bad_images(world: World) -> None:
    world.report(failure=BAD_IMAGES)


def out_of_memory(world: World) -> None:
    world.report(failure=OUT_OF_MEMORY)


# Name: run policy, what the world does between two looks, then the phase, the reason and the attempts.
LIVES: dict[str, tuple[dict[str, object], list[Step], Phase, str, int]] = {
    "it succeeds": ({}, [running, succeed], Phase.SUCCEEDED, "Succeeded", 1),
    "it fails once, then succeeds": (
        {}, [running, fail, wait(11), collect, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "it fails too often": (
        {"backoffLimit": 1}, [running, fail, wait(11), collect, running, fail], Phase.FAILED, "BackoffLimitExceeded", 2,
    ),
    "the user is wrong": ({}, [running, user_error], Phase.FAILED, "InvalidInput", 1),
    "the trainer says why": ({}, [running, trainer_gives_up], Phase.FAILED, "BadImages", 1),
    "it takes too long": (
        {"activeDeadlineSeconds": 60}, [running, wait(61), collect], Phase.FAILED, "DeadlineExceeded", 1,
    ),
    "it takes too long over two attempts": (
        {"activeDeadlineSeconds": 60},
        [running, wait(40), fail, wait(11), collect, running, wait(25), collect],
        Phase.FAILED, "DeadlineExceeded", 2,
    ),
    "it is suspended and resumed": (
        {}, [running, suspend, collect, resume, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "it is suspended at first": ({"suspend": True}, [resume, running, succeed], Phase.SUCCEEDED, "Succeeded", 1),
    "its RayJob is deleted by hand": (
        {}, [running, delete_by_hand, wait(11), running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "its head dies": ({}, [running, head_dies, wait(11), collect, running, succeed], Phase.SUCCEEDED, "Succeeded", 2),
    "its pods do not all come, and a retry is not used up": (
        {"backoffLimit": 0},
        [wait(400), collect, wait(11), running, wait(1000), succeed],
        Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "a queue admits, preempts and admits it": (
        {"queueName": "gpus"},
        [wait(1000), queue_admits, running, queue_preempts, wait(1000), queue_admits, running, succeed],
        Phase.SUCCEEDED, "Succeeded", 1,
    ),
    "a deadline does not count the queue": (
        {"queueName": "gpus", "activeDeadlineSeconds": 60}, [wait(1000), queue_admits, running, wait(59), succeed],
        Phase.SUCCEEDED, "Succeeded", 1,
    ),
    "its last report comes after its end": ({}, [running, succeed, published], Phase.SUCCEEDED, "Succeeded", 1),
    "the trainer says why after its end": ({}, [running, fail, bad_images], Phase.FAILED, "BadImages", 1),
    "the trainer says why after its head died": (
        {}, [running, head_dies, bad_images, collect], Phase.FAILED, "BadImages", 1,
    ),
    "the trainer says why after its head died, and it is tried again": (
        {}, [running, head_dies, out_of_memory, wait(11), collect, running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "the trainer says why after the last try": (
        {"backoffLimit": 0}, [running, fail, out_of_memory], Phase.FAILED, "BackoffLimitExceeded", 1,
    ),
    "the trainer says after the last try that no try could help": (
        {"backoffLimit": 0}, [running, fail, bad_images], Phase.FAILED, "BadImages", 1,
    ),
    "the trainer is stopped at the deadline and calls that a failure": (
        {"activeDeadlineSeconds": 60}, [running, wait(61), out_of_memory, collect], Phase.FAILED, "DeadlineExceeded", 1,
    ),
    "a late report waits out a suspension": (
        {}, [running, suspend, out_of_memory, collect, resume, running, succeed, published],
        Phase.SUCCEEDED, "Succeeded", 2,
    ),
}  # fmt: skip


def check(world: World) -> None:
    """What must hold after any action of anybody. (Transitions are checked where they are made.)"""
    assert len(world.live) <= 1, "two attempts alive"
    assert len(set(world.created)) == len(world.created), "an attempt was run twice"
    if world.job:
        assert world.status.failures <= world.status.attempts


def end_of(world: World) -> tuple[Phase, str, int]:
    kinds = {c.type: c for c in world.status.conditions}
    ended = kinds[ConditionType.SUCCEEDED]
    return world.status.phase, ended.reason, world.status.attempts


@pytest.mark.parametrize("life", LIVES)
def test_every_life_ends_as_it_should(life: str) -> None:
    policy, steps, *expected = LIVES[life]
    world = World(make_job(**policy))
    world.reconcile()
    for step in steps:
        step(world)
        world.reconcile()
    assert end_of(world) == tuple(expected)
    assert not world.live
    writes = world.writes
    world.pass_time(3600)
    world.reconcile()
    assert world.writes == writes, "a job that is over is left alone"


@pytest.mark.parametrize("life", LIVES)
def test_every_life_ends_the_same_wherever_it_is_interrupted(life: str) -> None:
    policy, steps, *expected = LIVES[life]
    for interrupted in range(-1, len(steps)):
        for after in range(12):
            world = World(make_job(**policy))
            for number, step in enumerate([lambda _: None, *steps], start=-1):
                step(world)
                if number == interrupted:
                    done = world.reconcile(most_actions=after)
                    check(world)
                world.reconcile()  # whoever takes over
                check(world)
            assert end_of(world) == tuple(expected), f"interrupted in step {interrupted} after {after} actions"
            if done < after:
                break


def test_a_rejected_job_says_what_to_write_and_starts_when_the_cause_is_gone() -> None:
    world = World(make_job(), runtime=None)
    world.reconcile()
    accepted = world.status.conditions[0]
    assert world.status.phase is Phase.REJECTED
    assert (
        "DreamBoothRuntime 'default' does not exist; write the name of one into spec.runtimeRef.name"
        in accepted.message
    )
    writes = world.writes
    world.pass_time(3600)
    world.reconcile()
    assert world.writes == writes
    assert world.events == ["RuntimeNotFound"], "told once"
    world.runtime = RUNTIME
    world.reconcile()
    assert world.status.phase is Phase.STARTING


def test_a_runtime_that_vanishes_does_not_touch_a_running_attempt() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.runtime = None
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    succeed(world)
    world.reconcile()
    assert world.status.phase is Phase.SUCCEEDED


def test_jobs_that_wait_for_each_others_pods_do_not_all_give_up_together() -> None:
    patience_seconds = set()
    for uid in ("a", "b", "c"):
        world = World(dataclasses.replace(make_job(), uid=uid))
        world.reconcile()
        left = world.look().decide().again_seconds
        assert left
        assert SETTINGS.pods_ready_seconds <= left < 2 * SETTINGS.pods_ready_seconds
        world.pass_time(left)
        world.reconcile()
        assert world.status.phase is Phase.RETRYING
        assert world.status.last_failure
        assert world.status.last_failure.reason == "PodsNotReady"
        patience_seconds.add(left)
    assert len(patience_seconds) == 3


def test_a_finished_job_is_deleted_after_its_time_to_live() -> None:
    world = World(make_job(ttlSecondsAfterFinished=100))
    world.reconcile()
    succeed(world)
    world.reconcile()
    world.pass_time(99)
    world.reconcile()
    assert world.job
    assert world.look().decide().again_seconds == 1
    world.pass_time(1)
    world.reconcile()
    assert world.job is None


def test_deletion_with_erasure_stops_the_pods_then_erases_then_lets_go() -> None:
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    world.delete()
    world.reconcile()
    assert world.status.phase is Phase.ERASING
    assert world.erase is None, "not while pods may still write"
    world.collect()
    world.reconcile()
    assert world.erase
    world.erase = world.erase.__class__("dog", succeeded=False, failed=True, message="no route to bucket.")
    world.reconcile()
    assert world.job, "what is not erased is not let go"
    erased = {c.type: c for c in world.status.conditions}[ConditionType.ERASED]
    assert "no route to bucket" in erased.message
    assert erased.status == "False"
    world.pass_time(61)
    world.reconcile()
    world.reconcile()
    assert not world.erase.failed, "tried again"
    world.erase = world.erase.__class__("dog", succeeded=True, failed=False)
    world.reconcile()
    assert world.job is None
    assert world.events[-1] == "Erased"


def test_progress_becomes_conditions() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.report(TrainerPhase.TRAIN)
    world.reconcile()
    told = {c.type.value: (c.status, c.reason) for c in world.status.conditions}
    assert told["ClusterReady"] == ("True", "Ready")
    assert told["ClassImagesReady"] == ("True", "Done")
    assert told["Trained"] == ("False", "UnderWay")
    assert told["Published"] == ("False", "Waiting")
    times = [c.last_transition_time for c in world.status.conditions]
    world.pass_time(50)
    world.report(TrainerPhase.TRAIN)
    writes = world.writes
    world.reconcile()
    assert world.writes == writes, "steps alone change nothing"
    assert [c.last_transition_time for c in world.status.conditions] == times


def conditions(world: World) -> dict[str, tuple[str, str]]:
    return {c.type.value: (c.status, c.reason) for c in world.status.conditions}


def without_evaluation() -> World:
    job = make_job()
    assert job.spec
    spec = job.spec.model_copy(update={"evaluation": job.spec.evaluation.model_copy(update={"enabled": False})})
    return World(dataclasses.replace(job, spec=spec))


def test_what_was_left_out_is_not_called_done() -> None:
    world = without_evaluation()
    world.reconcile()
    world.report(TrainerPhase.PUBLISH)
    succeed(world)
    world.reconcile()
    told = conditions(world)
    assert told["ClassImagesReady"] == told["Trained"] == ("True", "Done")
    assert told["Evaluated"] == ("True", "Skipped")
    assert told["Published"] == ("Unknown", "NotReported")


def test_nothing_is_claimed_that_was_not_reported_until_it_is() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    succeed(world)
    world.reconcile()
    steps = ("ClassImagesReady", "Trained", "Evaluated", "Published")
    assert {conditions(world)[step] for step in steps} == {("Unknown", "NotReported")}
    assert conditions(world)["Succeeded"] == ("True", "Succeeded")
    kinds = {c.type.value: c for c in world.status.conditions}
    assert "its last report did not arrive" in kinds["Published"].message
    assert "kubectl dreambooth images" in kinds["Succeeded"].message
    assert "s3://" not in kinds["Succeeded"].message, "a place that nobody reported"
    world.report(TrainerPhase.EVALUATE)
    world.reconcile()
    assert [conditions(world)[step][0] for step in steps] == ["True", "True", "Unknown", "Unknown"]
    world.report(scores={"dino": 0.7})
    world.reconcile()
    assert conditions(world)["Evaluated"] == ("True", "Done")
    published(world)
    world.reconcile()
    assert conditions(world)["Published"] == ("True", "Published")
    kinds = {c.type.value: c for c in world.status.conditions}
    assert kinds["Succeeded"].message == "The model is published to s3://b/out/model."
    assert kinds["Succeeded"].last_transition_time == world.status.completion_time


def test_what_an_earlier_attempt_reported_does_not_count_for_a_later_one() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    published(world)
    world.reconcile()
    fail(world)
    world.reconcile()
    world.pass_time(11)
    world.collect()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.status.attempts == 2
    assert not world.report_all(attempt=1), "the endpoint refuses an earlier attempt"
    succeed(world)
    world.reconcile()
    assert conditions(world)["Evaluated"] == conditions(world)["Published"] == ("Unknown", "NotReported")
    world.report(TrainerPhase.PUBLISH)
    assert world.status.scores is None
    assert world.status.output is None
    world.reconcile()
    assert conditions(world)["Trained"] == ("True", "Done")
    assert conditions(world)["Evaluated"] == conditions(world)["Published"] == ("Unknown", "NotReported")


def test_a_failure_that_comes_late_replaces_the_guess() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    head_dies(world)
    world.reconcile()
    assert world.status.last_failure
    assert world.status.last_failure.reason == "HeadLost"
    failures, due = world.status.failures, world.status.next_attempt_time
    out_of_memory(world)
    world.reconcile()
    assert world.status.last_failure == OUT_OF_MEMORY
    assert conditions(world)["ClusterReady"] == ("False", "OutOfMemory")
    assert (world.status.failures, world.status.next_attempt_time) == (failures, due), "it failed once"
    assert world.events[-1] == "AttemptFailed"


def test_a_late_report_of_a_failed_job_keeps_its_time_and_says_how_far_it_came() -> None:
    world = World(make_job(backoffLimit=0))
    world.reconcile()
    running(world)
    world.reconcile()
    fail(world)
    world.reconcile()
    ended = world.status.completion_time
    world.pass_time(30)
    world.report(TrainerPhase.EVALUATE, OUT_OF_MEMORY)
    world.reconcile()
    failed = {c.type.value: c for c in world.status.conditions}["Failed"]
    assert failed.message == (
        "1 attempts failed, spec.runPolicy.backoffLimit allows 0 retries. "
        "Attempt 1 failed. OutOfMemory: 32 GiB are too little"
    )
    assert world.status.completion_time == ended
    assert conditions(world)["Trained"] == ("True", "Done")
    assert "Published" not in conditions(world) or conditions(world)["Published"][0] != "True"


def test_a_report_of_an_earlier_attempt_does_not_fail_a_later_one() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    suspend(world)
    world.reconcile()
    world.report(failure=BAD_IMAGES)  # of attempt 1, which nobody is going to close
    world.collect()
    world.reconcile()
    resume(world)
    world.reconcile()
    assert world.status.attempts == 2
    assert not world.report(failure=BAD_IMAGES, attempt=1)
    fail(world)
    world.reconcile()
    assert world.status.phase is Phase.RETRYING


def _random_step(world: World, rng: random.Random) -> None:
    """Somebody other than the controller does something that is possible now."""
    ways: list[Step] = [wait(rng.choice([1, 5, 15, 70])), collect]
    if world.job and world.status.attempts:
        ways += [_random_report(rng)]
    if world.job and world.status.phase not in TERMINAL:
        ways += [suspend, resume]
    if world.job and (name := world.status.ray_job_name) in world.ray_jobs:
        assert name
        ray_job = world.ray_jobs[name]
        if not ray_job.ended and not ray_job.deleting:
            ways += [running, running, succeed, fail, delete_by_hand]
            if ray_job.suspended:
                ways = [wait(5), queue_admits]
            elif world.status.phase is Phase.RUNNING and name in world.clusters:
                ways += [head_dies]
    rng.choice(ways)(world)


def _random_report(rng: random.Random) -> Step:
    """Whatever a trainer may say, at any time, in time or late."""
    phase = rng.choice([None, *TrainerPhase])
    failure = rng.choice([None, None, None, None, BAD_IMAGES, OUT_OF_MEMORY])
    fields = {
        "scores": rng.choice([None, {"dino": rng.random()}]),
        "output": rng.choice([None, {"uri": f"s3://b/{rng.random()}"}]),
        "step": rng.randrange(10),
    }
    return lambda world: world.report(phase, failure, **fields) and None


def check_claims(world: World) -> None:
    """At rest, a condition of a job that succeeded is True only for what its latest attempt reported."""
    told, status = conditions(world), world.status
    reported = status.report is not None and status.report.attempt == status.attempts
    if status.phase is Phase.SUCCEEDED:
        assert (told["Evaluated"][0] == "True") == (reported and status.scores is not None)
        assert (told["Published"][0] == "True") == (reported and status.output is not None)
    if status.phase is Phase.FAILED and told["Failed"][1] != "DeadlineExceeded" and reported:
        assert status.report
        assert status.report.failure in (None, status.last_failure)


def _random_life(seed: int) -> None:
    rng = random.Random(seed)
    policy = {
        "backoffLimit": rng.randint(0, 3),
        "activeDeadlineSeconds": rng.choice([None, 30, 300]),
        "queueName": rng.choice([None, None, "gpus"]),
    }
    world = World(make_job(**policy))
    stale = world.look()
    for _ in range(60):
        match rng.randrange(4):
            case 0 | 1:
                _random_step(world, rng)
            case 2:  # a controller that is interrupted anywhere, or not
                world.reconcile(most_actions=rng.choice([0, 1, 2, 3, 100]))
            case _:  # one that acts on what it saw a while ago
                try:
                    for number, action in enumerate(stale.decide().actions):
                        world.act(stale, action, first=number == 0)
                except StaleError:
                    pass
                stale = world.look()
        assert world.job
        check(world)
    _let_it_end(world)
    assert world.status.phase in TERMINAL
    assert world.status.failures <= world.job.spec.run_policy.backoff_limit + 1  # type: ignore[union-attr]
    assert not world.live
    check_claims(world)
    for _ in range(3):  # what comes late changes what is known, and nothing else
        phase, attempts = world.status.phase, world.status.attempts
        _random_report(rng)(world)
        world.reconcile()
        check_claims(world)
        assert (world.status.phase, world.status.attempts) == (phase, attempts)
    assert not [a for a in world.look().decide().actions if isinstance(a, WriteStatus)]


def _let_it_end(world: World) -> None:
    """The world behaves from here on: the job must come to an end."""
    world.set_policy(suspend=False)
    for _ in range(100):
        world.reconcile()
        world.collect()
        if world.status.phase in TERMINAL and not world.live:
            world.reconcile()
            return
        if world.status.phase in OPEN and world.status.ray_job_name in world.ray_jobs:
            ray_job = world.ray_jobs[world.ray_job]
            if not ray_job.deleting and not ray_job.ended:
                world.kuberay(world.ray_job, suspended=False)
                succeed(world)
        world.pass_time(400 if world.status.phase is Phase.RETRYING else 1)
    raise AssertionError(f"stuck in {world.status.phase}")


def test_random_lives_keep_the_invariants() -> None:
    first = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    count = int(os.environ.get("DREAMBOOTH_LIVES", "250"))
    for seed in range(first, first + count):
        try:
            _random_life(seed)
        except Exception as error:
            error.add_note(f"again with DREAMBOOTH_SEED={seed} DREAMBOOTH_LIVES=1")
            raise
    print(f"{count} random lives from seed {first}")


def test_every_state_can_be_left_but_the_last() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert [phase for phase, nexts in TRANSITIONS.items() if not nexts] == [Phase.ERASING]
    with pytest.raises(ValueError, match="a job cannot go from Succeeded to Running"):
        check_transition(Phase.SUCCEEDED, Phase.RUNNING)
