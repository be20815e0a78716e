"""Merging of a trainer's report into a job's status. Pure."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from dreambooth_api.fields import MAX_IDENTIFIER_LENGTH
from dreambooth_api.progress import ProgressMessage
from dreambooth_api.status import (
    JobStatus,
    OpenTrainerPhase,
    Report,
    ReportedStatus,
    Scores,
    SubjectScores,
    TrainerPhase,
    TrainingStatus,
)
from dreambooth_api.subject import MAX_SUBJECTS


def merge(status: JobStatus, report: ProgressMessage, attempt: int, now: datetime) -> ReportedStatus:
    """The status server's fields of the status after `report` of `attempt`.

    Scores and output of an earlier attempt are dropped; the trainer reports them again if they are still valid. Class
    images and steps are kept, because the next attempt continues from them. The first commit of the model is kept,
    because later attempts are started with it.
    """
    old = status.report if status.report and status.report.attempt == attempt else None
    phase = report.phase or (old.phase if old else None)
    training = status.training or TrainingStatus()
    if phase is TrainerPhase.TRAIN and (old is None or old.phase is not TrainerPhase.TRAIN):
        # An attempt that trains may publish the last step. An attempt that does not keeps what was selected.
        training = training.model_copy(update={"selected_step": None})
    return ReportedStatus(
        report=Report(
            attempt=attempt,
            phase=phase,
            time=now.replace(microsecond=0),
            failure=report.failure or (old.failure if old else None),
        ),
        class_images=report.class_images or status.class_images,
        training=_training(training, report, phase),
        scores=Scores(**_scores(report.scores)) if report.scores else status.scores if old else None,
        subject_scores=_subject_scores(report) if report.subject_scores else status.subject_scores if old else None,
        output=report.output or (status.output if old else None),
        model_commit=status.model_commit or report.model_commit,
        super_resolution_commit=status.super_resolution_commit or report.super_resolution_commit,
    )


def is_milestone(old: ReportedStatus, new: ReportedStatus) -> bool:
    """Whether the change from `old` to `new` is written at once. Of the steps: first, last and saved."""
    return _milestone(old) != _milestone(new)


def is_outcome(old: ReportedStatus, new: ReportedStatus) -> bool:
    """Whether `new` has the first output or the first failure of an attempt, as a trainer's last message has."""
    failures = [bool(status.report and status.report.failure) for status in (old, new)]
    return failures == [False, True] or (old.output is None and new.output is not None)


def _milestone(status: ReportedStatus) -> object:
    report, training = status.report or Report(), status.training or TrainingStatus()
    is_last = training.step is not None and training.step == training.steps
    return (
        (report.attempt, report.phase, report.failure),
        (bool(training.step), is_last, training.saved_step, training.selected_step),
        (status.class_images, status.scores, status.subject_scores, status.output),
        (status.model_commit, status.super_resolution_commit),
    )


def _training(old: TrainingStatus, report: ProgressMessage, phase: OpenTrainerPhase | None) -> TrainingStatus | None:
    given: dict[str, Any] = {
        "step": report.step,
        "steps": report.steps,
        "saved_step": report.saved_step,
        "selected_step": report.selected_step,
        "samples": report.samples,
        "world_size": report.world_size,
        "loss": _rounded(report.loss),
        "steps_per_second": _rounded(report.steps_per_second),
        "eta": _duration(report.eta_seconds),
    }
    new = old.model_copy(update={name: value for name, value in given.items() if value is not None})
    if phase is not TrainerPhase.TRAIN or new.step == new.steps:
        new = new.model_copy(update={"eta": None, "steps_per_second": None})
    if new.step is not None and new.steps:
        new = new.model_copy(update={"progress": f"{new.step}/{new.steps}"})
    return None if new == TrainingStatus() else new


def _subject_scores(report: ProgressMessage) -> list[SubjectScores]:
    """The scores of each subject, as many as the status can contain."""
    first = list((report.subject_scores or {}).items())[:MAX_SUBJECTS]
    return [
        SubjectScores(identifier=identifier[:MAX_IDENTIFIER_LENGTH], **_scores(scores)) for identifier, scores in first
    ]


def _scores(scores: dict[str, float | None]) -> dict[str, str]:
    """Scores by either spelling of their names (clipI, clip_i), with three decimals."""
    fields = {name.replace("_", ""): name for name in Scores.model_fields}
    known = {fields[key]: value for name, value in scores.items() if (key := name.replace("_", "").lower()) in fields}
    return {name: f"{value:.3f}" for name, value in known.items() if value is not None and abs(value) < 1e9}


def _rounded(value: float | None) -> float | None:
    """Four significant digits, so that insignificant changes cause no write."""
    return None if value is None else float(f"{value:.4g}")


def _duration(seconds: float | None) -> str | None:
    """A duration as kubectl prints it: 45s, 5m, 2h10m."""
    if seconds is None:
        return None
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours}h{minutes}m" if minutes else f"{hours}h"
    return f"{minutes}m" if minutes else f"{rest}s"
