"""From a trainer's report to a job's status."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from dreambooth_operator.api.status import Failure, JobStatus, ReportedStatus, TrainerPhase
from dreambooth_operator.progress.report import TrainerReport, merge, news_of

NOW = datetime(2026, 11, 24, 7, 0, 0, 123, tzinfo=UTC)


def told(*reports: dict[str, object], attempts: tuple[int, ...] = (1, 1, 1)) -> ReportedStatus:
    """The status after reports in a row."""
    status = JobStatus()
    for report, attempt in zip(reports, attempts, strict=False):
        merged = merge(status, TrainerReport.model_validate(report), attempt, NOW)
        status = JobStatus.model_validate({**status.model_dump(), **merged.model_dump()})
    return status


def test_what_is_not_said_stays_as_it_was() -> None:
    status = told(
        {"phase": "Train", "step": 5, "steps": 10, "loss": 0.123456},
        {"step": 6, "priors": {"wanted": 2, "reused": 1, "generated": 1}},
        {"phase": "Evaluate"},
    )
    assert status.training
    assert (status.training.progress, status.training.loss) == ("6/10", 0.1235)
    assert status.priors
    assert status.priors.wanted == 2
    assert status.report
    assert status.report.phase is TrainerPhase.EVALUATE


@pytest.mark.parametrize(
    ("seconds", "shown"), [(0.4, "0s"), (59, "59s"), (61, "1m"), (3600, "1h"), (7860, "2h11m"), (1e400, None)]
)
def test_the_time_left_reads_as_kubectl_writes_ages(seconds: float, shown: str | None) -> None:
    training = told({"phase": "train", "step": 1, "steps": 10, "etaSeconds": seconds}).training
    assert training
    assert training.eta == shown


def test_there_is_no_time_left_once_training_is_over() -> None:
    training = told(
        {"phase": "Train", "step": 1, "steps": 2, "etaSeconds": 9}, {"phase": "Evaluate", "step": 2}
    ).training
    assert training
    assert training.eta is None


def test_a_failure_belongs_to_its_attempt() -> None:
    failure = {"reason": "Boom", "message": "m", "retryable": True}
    assert told({"failure": failure}, {"step": 1}).report.failure == Failure(reason="Boom", message="m")  # type: ignore[union-attr]
    assert told({"failure": failure}, {"step": 1}, attempts=(1, 2)).report.failure is None  # type: ignore[union-attr]


def test_scores_go_by_any_of_their_names() -> None:
    scores = told({"scores": {"dino": 0.71234, "clip_i": 0.8, "clipT": 0.3, "CLIP_T_extra": 1.0, "pres": None}}).scores
    assert scores
    assert scores.model_dump(exclude_none=True) == {"dino": "0.712", "clip_i": "0.800", "clip_t": "0.300"}


def test_steps_are_no_news_but_a_phase_is() -> None:
    def news(**report: object) -> object:
        return news_of(TrainerReport.model_validate(report))

    assert news(phase="Train", step=1, loss=3.0) == news(phase="train", step=2, loss=float("nan"))
    assert news(phase="Train") != news(phase="Evaluate")
    assert news(phase="Train", scores={"dino": 0.1}) != news(phase="Train", scores={"dino": 0.2})
