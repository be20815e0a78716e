"""status.message: one line that explains the current phase of a job."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from scenarios import (
    OUT_OF_MEMORY,
    Step,
    admit,
    collect,
    fail,
    fail_with_report,
    lose_head,
    preempt,
    report_out_of_memory,
    report_published,
    running,
    succeed,
    suspend,
    wait,
)
from simulation import World, make_job

from dreambooth_api.status import MAX_SUMMARY_LENGTH, Failure, Phase, TrainerPhase, summarize

MESSAGES: dict[str, tuple[dict[str, object], Sequence[Step], Phase, str]] = {
    "starting": ({}, [], Phase.STARTING, "The Ray cluster is being created."),
    "running": ({}, [running], Phase.RUNNING, "The trainer is starting."),
    "queued": ({"queueName": "gpus"}, [], Phase.QUEUED, "Waiting for admission by queue gpus."),
    "admitted": ({"queueName": "gpus"}, [admit, running], Phase.RUNNING, "The trainer is starting."),
    "preempted": (
        {"queueName": "gpus"}, [admit, running, preempt], Phase.QUEUED, "Waiting for admission by queue gpus.",
    ),
    "retrying": (
        {}, [running, lose_head], Phase.RETRYING, "failed with HeadLost: Head pod",
    ),
    "the next attempt": (
        {}, [running, lose_head], Phase.RETRYING, "was lost. The next attempt starts at 2026-11-24T06:00:10Z.",
    ),
    "retrying after a late report": (
        {}, [running, lose_head, report_out_of_memory], Phase.RETRYING,
        "Attempt 1 failed with OutOfMemory: 32 GiB are not enough.",
    ),
    "suspending": (
        {}, [running, suspend], Phase.SUSPENDING,
        "The pods are being deleted. Training can resume from the last checkpoint.",
    ),
    "suspended": (
        {}, [running, suspend, collect], Phase.SUSPENDED,
        "The job is suspended and has no pods. To resume it, set spec.runPolicy.suspend to false.",
    ),
    "succeeded": (
        {}, [running, report_published, succeed], Phase.SUCCEEDED, "The model was published to s3://b/out/model.",
    ),
    "succeeded without a last report": ({}, [running, succeed], Phase.SUCCEEDED, "last report did not arrive"),
    "succeeded before the last report": (
        {}, [running, succeed, report_published], Phase.SUCCEEDED, "The model was published to s3://b/out/model.",
    ),
    "failed": ({}, [running, fail_with_report], Phase.FAILED, "images/1.png is not an image"),
    "failed too often": (
        {"backoffLimit": 0}, [running, fail], Phase.FAILED, "Attempt 1 failed with AppFailed: Job entrypoint command",
    ),
    "failed before the last report": (
        {"backoffLimit": 0}, [running, fail, report_out_of_memory], Phase.FAILED,
        "failed with OutOfMemory: 32 GiB are not enough. No retries are left",
    ),
    "deadline exceeded": (
        {"activeDeadlineSeconds": 60}, [running, wait(61)], Phase.FAILED,
        "The job was active for 60 s over all attempts",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MESSAGES)
def test_message_explains_the_phase(name: str) -> None:
    policy, steps, phase, message = MESSAGES[name]
    world = World(make_job(**policy))
    world.reconcile()
    for step in steps:
        step(world)
        world.reconcile()
    assert world.status.phase is phase
    assert message in world.status.message


def test_message_of_a_rejected_job_is_the_remedy() -> None:
    world = World(make_job(), runtime=None)
    world.reconcile()
    assert world.status.message == world.status.conditions[0].message
    assert "set spec.runtimeRef.name to one of" in world.status.message


def test_message_of_a_deleted_job_says_what_is_deleted() -> None:
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.reconcile()
    world.delete()
    world.reconcile()
    assert world.status.message == "The job is being deleted: its pods are terminating."
    world.collect()
    world.reconcile()
    assert world.status.message == "The job is being deleted: a pod is deleting its data."


def test_message_follows_the_phases_of_the_trainer_but_not_its_steps() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    world.reconcile()
    messages: list[str] = []
    for phase in TrainerPhase:
        world.report(phase)
        world.reconcile()
        messages.append(world.status.message)
        writes = world.writes
        for step in range(20):
            world.report(phase, step=step, steps=20, loss=1 / (step + 1))
            world.advance(10)
            world.reconcile()
        assert world.writes == writes, f"the steps of {phase} cause no write"
    assert len(set(messages)) == len(TrainerPhase)
    assert "The trainer is training the model." in messages


def test_message_is_a_single_line_of_limited_length() -> None:
    world = World(make_job())
    world.reconcile()
    running(world)
    text = "\x1b[31mTraceback\x1b[0m\n  line 1\r\n" + "x" * 1000
    world.report(failure=Failure(reason="Bug", message=text, retryable=False))
    fail(world)
    world.reconcile()
    assert world.status.message.startswith("Traceback line 1 xxx")
    assert len(world.status.message) == MAX_SUMMARY_LENGTH
    assert summarize(OUT_OF_MEMORY.message) == OUT_OF_MEMORY.message
