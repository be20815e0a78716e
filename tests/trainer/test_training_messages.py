"""Messages of the training workers to the driver."""

from __future__ import annotations

from typing import Any

from dreambooth_trainer.training.messages import (
    CheckpointSaved,
    FatalWorkerError,
    ProgressActor,
    StepRecord,
    TrainingProgress,
)


def record(step: int) -> StepRecord:
    return StepRecord(step, loss=1.0, instance_loss=1.0, prior_loss=None, learning_rate=1e-4, world_size=1)


def test_the_last_message_of_each_kind_and_the_first_error_are_kept() -> None:
    actor = ProgressActor()
    assert actor.last() == TrainingProgress()
    errors = [FatalWorkerError("first"), FatalWorkerError("second")]
    for message in (record(1), CheckpointSaved(1), record(2), *errors, record(3)):
        actor.put(message)
    assert actor.last() == TrainingProgress(record(3), CheckpointSaved(1), errors[0])


def test_the_step_of_a_registered_checkpoint_is_reported() -> None:
    from dreambooth_trainer.training.worker_group import SavedStepReporter

    reported: list[CheckpointSaved] = []
    checkpoint: Any = object()
    reporter = SavedStepReporter(reported.append)
    reporter.after_report(None, [{"step": 4}, {"step": 4}], checkpoint)
    reporter.after_report(None, [{"step": 5}], None)
    assert reported == [CheckpointSaved(4)]
