"""decide(): scenarios, each with interruptions at every action, and random histories with a logged seed."""

from __future__ import annotations

import dataclasses
import os
import random
from collections.abc import Callable

import pytest
from scenarios import (
    BAD_IMAGES,
    OUT_OF_MEMORY,
    Scenario,
    Step,
    admit,
    check_invariants,
    check_scenario,
    check_scenario_with_interruptions,
    collect,
    conditions,
    delete_ray_job,
    fail,
    fail_with_report,
    fail_with_user_error,
    lose_head,
    preempt,
    report_bad_images,
    report_published,
    resume,
    running,
    succeed,
    suspend,
    wait,
)
from simulation import RUNTIME, StaleError, World, make_job
from test_pods import pod, unschedulable, waiting

from dreambooth_api.status import TERMINAL, Phase, TrainerPhase
from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.lifecycle import OPEN, TRANSITIONS, check_transition

SCENARIOS = {
    "the job succeeds": Scenario([running, succeed], Phase.SUCCEEDED, "Succeeded", 1),
    "the input is not valid": Scenario([running, fail_with_user_error], Phase.FAILED, "InvalidInput", 1),
    "the trainer reports a failure": Scenario([running, fail_with_report], Phase.FAILED, "BadImages", 1),
    "the RayJob is deleted by a user": Scenario(
        [running, delete_ray_job, wait(11), running, succeed], Phase.SUCCEEDED, "Succeeded", 2,
    ),
    "the last report arrives after the end": Scenario(
        [running, succeed, report_published], Phase.SUCCEEDED, "Succeeded", 1,
    ),
    "the trainer reports a failure after the end": Scenario(
        [running, fail, report_bad_images], Phase.FAILED, "BadImages", 1,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_rejected_job_has_a_remedy_and_starts_when_the_cause_is_fixed() -> None:
    world = World(make_job(), runtime=None)
    world.reconcile()
    accepted = world.status.conditions[0]
    assert world.status.phase is Phase.REJECTED
    assert "DreamBoothRuntime 'default' does not exist; set spec.runtimeRef.name to one of" in accepted.message
    writes = world.writes
    world.advance(3600)
    world.reconcile()
    assert world.writes == writes
    assert world.events == ["RuntimeNotFound"], "a single event"
    world.runtime = RUNTIME
    world.reconcile()
    assert world.status.phase is Phase.STARTING


def test_deleting_the_runtime_does_not_affect_a_running_attempt() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.runtime = None
    world.reconcile()
    assert world.status.phase is Phase.RUNNING
    succeed(world)
    world.reconcile()
    assert world.status.phase is Phase.SUCCEEDED


def _random_step(world: World, rng: random.Random) -> None:
    """Somebody other than the controller does something that is possible in the current state."""
    choices: list[Step] = [wait(rng.choice([1, 5, 15, 70, 400])), collect, _random_pods(rng)]
    if world.job and world.status.attempts:
        choices += [_random_report(rng)]
    if world.job and world.status.phase not in TERMINAL:
        choices += [suspend, resume]
    if world.job and (name := world.status.ray_job_name) in world.ray_jobs:
        assert name
        ray_job = world.ray_jobs[name]
        if not ray_job.ended and not ray_job.deleting:
            choices += [running, running, succeed, fail, delete_ray_job]
            if ray_job.suspended:
                choices = [wait(5), admit]
            elif world.status.phase is Phase.RUNNING and name in world.clusters:
                choices += [lose_head]
                if world.job.spec and world.job.spec.run_policy.queue_name:
                    choices += [preempt]
    rng.choice(choices)(world)


def _random_pods(rng: random.Random) -> Step:
    """Pods of the latest attempt that are ready, wait, cannot start, are disrupted or do not end."""
    kind = rng.choice(["", "", "no GPU", "no Secret", "disrupted", "stuck"])

    def set_pods(world: World) -> None:
        head = pod({"conditions": [{"type": "Ready", "status": "True"}]})
        pods = {
            "no GPU": pod(unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu.")),
            "no Secret": pod(waiting("CreateContainerConfigError", 'secret "hub" not found')),
            "disrupted": dataclasses.replace(head, disruption="EvictionByEvictionAPI: Eviction API"),
            "stuck": dataclasses.replace(head, ends=world.now),
        }
        attempt = str(world.status.attempts) if world.job else ""
        world.pods = [dataclasses.replace(pods[kind], attempt=attempt)] if kind else []

    return set_pods


def _random_report(rng: random.Random) -> Step:
    """A random report, which may arrive at any time."""
    phase = rng.choice([None, *TrainerPhase])
    failure = rng.choice([None, None, None, None, BAD_IMAGES, OUT_OF_MEMORY])
    fields = {
        "scores": rng.choice([None, {"dino": rng.random()}]),
        "output": rng.choice([None, {"uri": f"s3://b/{rng.random()}"}]),
        "step": rng.randrange(10),
    }

    def report(world: World) -> None:
        world.report(phase, failure, **fields)

    return report


def check_conditions(world: World) -> None:
    """Once the status is stable, a condition of a succeeded job is True only if its latest attempt reported it."""
    found, status = conditions(world), world.status
    reported = status.report is not None and status.report.attempt == status.attempts
    if status.phase is Phase.SUCCEEDED:
        assert (found["Evaluated"][0] == "True") == (reported and status.scores is not None)
        assert (found["Published"][0] == "True") == (reported and status.output is not None)
    deadlines = ("DeadlineExceeded", "StartDeadlineExceeded")
    if status.phase is Phase.FAILED and found["Failed"][1] not in deadlines and reported:
        assert status.report
        assert status.report.failure in (None, status.last_failure)


def _run_random_history(seed: int) -> None:
    rng = random.Random(seed)
    policy = {
        "backoffLimit": rng.randint(0, 3),
        "activeDeadlineSeconds": rng.choice([None, 30, 300]),
        "startDeadlineSeconds": rng.choice([None, None, 30, 300]),
        "progressDeadlineSeconds": rng.choice([300, 1800]),
        "queueName": rng.choice([None, None, "gpus"]),
    }
    world = World(make_job(**policy))
    _disturb(world, rng, actions=60)
    _finish(world)
    assert world.status.phase in TERMINAL
    assert world.status.failures <= world.job.spec.run_policy.backoff_limit + 1  # type: ignore[union-attr]
    assert not world.live
    check_conditions(world)
    for _ in range(3):  # late reports change neither the phase nor the number of attempts
        phase, attempts = world.status.phase, world.status.attempts
        _random_report(rng)(world)
        world.reconcile()
        check_conditions(world)
        assert (world.status.phase, world.status.attempts) == (phase, attempts)
    assert not [a for a in world.observe().decide().actions if isinstance(a, WriteStatus)]


def _disturb(world: World, rng: random.Random, *, actions: int) -> None:
    """Random actions of everybody, in a random order. The invariants hold after each of them."""
    stale = world.observe()
    for _ in range(actions):
        match rng.randrange(4):
            case 0 | 1:
                _random_step(world, rng)
            case 2:  # a controller that may be interrupted anywhere
                world.reconcile(max_actions=rng.choice([0, 1, 2, 3, 100]))
            case _:  # a controller that acts on a stale observation
                try:
                    for number, action in enumerate(stale.decide().actions):
                        world.act(stale, action, first=number == 0)
                except StaleError:
                    pass
                if world.job:
                    stale = world.observe()
        check_invariants(world)
        if world.job is None:
            return


def _run_random_deletion(seed: int) -> None:
    """A user deletes a job with `deletionPolicy: Delete` at a random time, and disturbances go on."""
    rng = random.Random(seed)
    world = World(make_job(erase=True, queueName=rng.choice([None, "gpus"])))
    _disturb(world, rng, actions=rng.randrange(40))
    world.delete()
    if world.job:
        _disturb(world, rng, actions=20)
    for _ in range(100):
        if world.job is None:
            break
        world.reconcile()
        world.collect()
        if world.erase and not world.erase.succeeded and not world.erase.failed:
            assert not world.live, "pods may still write"
            failed = rng.random() < 0.3
            world.erase = dataclasses.replace(world.erase, succeeded=not failed, failed=failed, message="no route")
        world.advance(70)
    assert world.job is None
    assert not world.live


def _finish(world: World) -> None:
    """Without further disturbances the job must finish."""
    world.set_policy(suspend=False)
    world.pods = []
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
        world.advance(400 if world.status.phase is Phase.RETRYING else 1)
    raise AssertionError(f"stuck in {world.status.phase}")


def _repeat(run: Callable[[int], None]) -> None:
    first = int(os.environ.get("DREAMBOOTH_SEED", random.SystemRandom().randrange(2**31)))
    count = int(os.environ.get("DREAMBOOTH_HISTORIES", "250"))
    for seed in range(first, first + count):
        try:
            run(seed)
        except Exception as error:
            error.add_note(f"repeat with DREAMBOOTH_SEED={seed} DREAMBOOTH_HISTORIES=1")
            raise
    print(f"{count} random histories from seed {first}")


def test_random_histories_keep_the_invariants() -> None:
    _repeat(_run_random_history)


def test_deleted_jobs_stop_and_their_data_is_deleted_in_random_histories() -> None:
    _repeat(_run_random_deletion)


def test_only_the_last_phase_has_no_transitions() -> None:
    assert set(TRANSITIONS) == set(Phase)
    assert [phase for phase, nexts in TRANSITIONS.items() if not nexts] == [Phase.ERASING]
    with pytest.raises(ValueError, match="a job cannot go from Succeeded to Running"):
        check_transition(Phase.SUCCEEDED, Phase.RUNNING)
