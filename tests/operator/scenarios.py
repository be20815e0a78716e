"""Scenarios: what the world does between two reconciliations, and how the job must end.

Each scenario is checked twice: as it is, and with the controller interrupted after each of its actions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

from simulation import World, make_job

from dreambooth_api.status import ConditionType, Failure, Phase

Step = Callable[[World], None]
BAD_IMAGES = Failure(reason="BadImages", message="images/1.png is not an image", retryable=False)
OUT_OF_MEMORY = Failure(reason="OutOfMemory", message="32 GiB are not enough", retryable=True)


@dataclasses.dataclass(frozen=True)
class Scenario:
    """Steps of the world, and the expected end: phase, reason of the condition Succeeded, number of attempts."""

    steps: Sequence[Step]
    phase: Phase
    reason: str
    attempts: int
    policy: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def expected(self) -> tuple[Phase, str, int]:
        return self.phase, self.reason, self.attempts


def check_scenario(scenario: Scenario) -> None:
    world = World(make_job(**scenario.policy))
    world.reconcile()
    for step in scenario.steps:
        step(world)
        world.reconcile()
    assert outcome(world) == scenario.expected
    assert not world.live
    writes = world.writes
    world.advance(3000)
    world.reconcile()
    assert world.writes == writes, "a finished job is not written again"


def check_scenario_with_interruptions(scenario: Scenario) -> None:
    """The outcome must not depend on where the controller was interrupted and another one continued."""
    for interrupted in range(-1, len(scenario.steps)):
        for max_actions in range(12):
            world, done = World(make_job(**scenario.policy)), 0
            for number, step in enumerate([_no_step, *scenario.steps], start=-1):
                step(world)
                if number == interrupted:
                    done = world.reconcile(max_actions=max_actions)
                    check_invariants(world)
                world.reconcile()
                check_invariants(world)
            message = f"interrupted in step {interrupted} after {max_actions} actions"
            assert outcome(world) == scenario.expected, message
            if done < max_actions:
                break


def check_invariants(world: World) -> None:
    """What holds after any action of anybody. (Transitions are checked by the simulation.)"""
    assert len(world.live) <= 1, "two attempts are alive"
    assert len(set(world.created)) == len(world.created), "an attempt was run twice"
    if world.job:
        assert world.status.failures <= world.status.attempts
        ray_job = world.ray_jobs.get(world.status.ray_job_name or "")
        if ray_job and ray_job.uid == world.status.ray_job_uid and not ray_job.ended:
            assert world.config_maps[ray_job.name] == ray_job.uid, "its pods wait for the ConfigMap"
        assert bool(world.status.message) == bool(world.writes), "each status has a message"


def outcome(world: World) -> tuple[Phase, str, int]:
    succeeded = next(c for c in world.status.conditions if c.type is ConditionType.SUCCEEDED)
    return world.status.phase, succeeded.reason, world.status.attempts


def conditions(world: World) -> dict[str, tuple[str, str]]:
    """Status and reason of each condition."""
    return {str(c.type): (c.status, c.reason) for c in world.status.conditions}


def messages(world: World) -> dict[str, str]:
    return {str(c.type): c.message for c in world.status.conditions}


# --- steps


def _no_step(_: World) -> None:
    pass


def running(world: World) -> None:
    world.kuberay(world.ray_job, deployment="Running", job="RUNNING")


def succeed(world: World) -> None:
    world.succeed()


def fail(world: World) -> None:
    world.fail()


def fail_with_user_error(world: World) -> None:
    world.fail(exit_code=2)


def wait(seconds: float) -> Step:
    return lambda world: world.advance(seconds)


def suspend(world: World) -> None:
    world.set_policy(suspend=True)


def resume(world: World) -> None:
    world.set_policy(suspend=False)


def collect(world: World) -> None:
    world.collect()


def delete_ray_job(world: World) -> None:
    del world.ray_jobs[world.ray_job]
    if world.status.ray_job_uid is None:  # before it was observed: as if it had never been created
        world.created.remove(world.ray_job)


def lose_head(world: World) -> None:
    world.clusters[world.ray_job] = dataclasses.replace(world.clusters[world.ray_job], head_ready=False, head_gone=True)


def admit(world: World) -> None:
    world.kuberay(world.ray_job, suspended=False)


def preempt(world: World) -> None:
    world.kuberay(world.ray_job, suspended=True, deployment="Suspended", job="")


def fail_with_report(world: World) -> None:
    report_bad_images(world)
    world.fail()


def report_published(world: World) -> None:
    """The last report. With interruptions it may arrive before or after the end."""
    world.report_all()


def report_bad_images(world: World) -> None:
    world.report(failure=BAD_IMAGES)


def report_out_of_memory(world: World) -> None:
    world.report(failure=OUT_OF_MEMORY)
