"""The status of a local job in its folder: the one that an operator would write."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime, timedelta
from io import StringIO
from pathlib import Path

import pytest
from click.testing import CliRunner
from rich.console import Console

from dreambooth_api.environment import ATTEMPT
from dreambooth_api.errors import ThresholdError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import ConditionType, Phase, TrainerPhase, parse_status
from dreambooth_trainer.cli.run import reporting, run
from dreambooth_trainer.jobfile.load import dump_job
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.store import status_file
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.status_file import MAX_EVENTS, JobRecord, StatusReporter, read_record

JOB = DreamBoothJob.model_validate(
    {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "my-dog"},
        "spec": {"subject": {"images": {"uri": "photos"}, "class": "dog"}},
    }
)


def reporter(folder: JobFolder) -> StatusReporter:
    return StatusReporter(LineReporter(Console(file=StringIO())), folder, JOB)


def record(folder: JobFolder) -> JobRecord:
    found = read_record(folder)
    assert found is not None
    return found


def test_the_status_follows_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(status_file, "INTERVAL_SECONDS", 0)
    folder = JobFolder(tmp_path)
    with reporting(reporter(folder)) as reports:
        assert record(folder).status.phase is Phase.RUNNING
        reports.skipped(TrainerPhase.PREPARE)
        reports.finished(TrainerPhase.CLASS_IMAGES, {"wanted": 8, "reused": 8, "generated": 0})
        with reports.phase(TrainerPhase.TRAIN) as progress:
            progress.total(4)
            progress.done(1, loss=math.nan)
            progress.done(2, loss=0.5, saved_step=2, world_size=1)
            status = record(folder).status
            assert status.message == "The trainer is training the model."
            assert status.training and (status.training.progress, status.training.saved_step) == ("2/4", 2)
        reports.finished(TrainerPhase.PUBLISH, {"uri": "out/model", "digest": "sha256:1"})
    found = record(folder)
    assert (found.status.phase, found.status.message) == (Phase.SUCCEEDED, "The model was published to out/model.")
    assert [condition.type for condition in found.status.conditions] == ["ClassImagesReady", "Published", "Succeeded"]
    content = json.loads(folder.status.read_text())
    assert (content["kind"], content["metadata"]["name"]) == ("DreamBoothJob", "my-dog")
    assert parse_status(content["status"]) == found.status
    assert list(tmp_path.rglob("*.draft")) == []


def test_conditions_have_the_reasons_of_an_operator(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    spec = JOB.spec.model_copy(update={"evaluation": JOB.spec.evaluation.model_copy(update={"enabled": False})})
    job = JOB.model_copy(update={"spec": spec})
    with reporting(StatusReporter(LineReporter(Console(file=StringIO())), folder, job)) as reports:
        for phase in TrainerPhase:
            reports.finished(phase, {"uri": "out/model", "digest": "sha256:1"})
        found = {condition.type: condition for condition in record(folder).status.conditions}
    assert {kind: condition.reason for kind, condition in found.items()} == {
        "ClassImagesReady": "Done",
        "Trained": "Done",
        "Evaluated": "Skipped",
        "Published": "Published",
    }
    assert found[ConditionType.PUBLISHED].message == "The model was published to out/model."


def test_an_attempt_whose_status_is_written_has_a_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    logs: list[str] = []

    def enter(self: StatusReporter) -> StatusReporter:
        logs.extend(path.name for path in (self.folder.root / "logs").iterdir())
        raise ThresholdError(ValidationIssue("x", None, "ends here", "nothing"))

    monkeypatch.setattr(StatusReporter, "__enter__", enter)
    (tmp_path / "job.yaml").write_text(dump_job(JOB))
    result = CliRunner().invoke(run, [str(tmp_path / "job.yaml"), "--out", str(tmp_path / "out")])
    assert isinstance(result.exception, ThresholdError)
    assert logs == ["attempt-1.log"]


def test_an_interrupted_run_is_suspended_and_a_failed_one_has_its_reason(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with pytest.raises(KeyboardInterrupt), reporting(reporter(folder)):
        raise KeyboardInterrupt
    assert (record(folder).status.phase, record(folder).status.failures) == (Phase.SUSPENDED, 0)
    issue = ValidationIssue("spec.evaluation.thresholds.dino", 0.9, "is too high", "lower it")
    with pytest.raises(ThresholdError), reporting(reporter(folder)):
        raise ThresholdError(issue)
    status = record(folder).status
    assert (status.phase, status.attempts, status.failures) == (Phase.FAILED, 2, 1)
    assert status.last_failure and status.last_failure.reason == "BelowThresholds"
    assert [(c.type, c.reason) for c in status.conditions] == [("Failed", "BelowThresholds")]
    with reporting(reporter(folder)):
        assert record(folder).status.conditions == [], "the failure was that of the last attempt"
    reasons = [event["reason"] for event in record(folder).events]
    assert reasons == [
        "AttemptStarted",
        "Suspended",
        "AttemptStarted",
        "BelowThresholds",
        "AttemptStarted",
        "Succeeded",
    ]


def test_the_attempts_of_a_job_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, start = JobFolder(tmp_path), datetime(2026, 1, 1, tzinfo=UTC)
    now = start
    monkeypatch.setattr(status_file, "_now", lambda: now)
    for seconds in (10, 20):
        with pytest.raises(OSError, match="the disk is full"), reporting(reporter(folder)):
            now += timedelta(seconds=seconds)
            raise OSError("the disk is full")
        now += timedelta(hours=1)  # nothing runs
    status = record(folder).status
    assert (status.attempts, status.failures, status.active_seconds) == (2, 2, 30)
    assert (status.start_time, status.active_since) == (start, None)
    monkeypatch.setenv(ATTEMPT, "7")
    with reporting(reporter(folder)):
        assert record(folder).status.attempts == 7, "the number that a client has given it"


def test_reporting_does_not_fail_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(status_file, "atomic_write", fail)
    with reporting(reporter(JobFolder(tmp_path))) as reports:
        reports.finished(TrainerPhase.TRAIN, {})
    assert read_record(JobFolder(tmp_path)) is None


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"metadata": {"name": 1}}', "\x00", '{"metadata": 1}'])
def test_a_damaged_file_is_no_status(tmp_path: Path, content: str) -> None:
    folder = JobFolder(tmp_path)
    folder.work.mkdir()
    folder.status.write_text(content)
    assert read_record(folder) is None


def test_only_the_last_events_are_kept(tmp_path: Path) -> None:
    folder = JobFolder(tmp_path)
    with reporting(reporter(folder)) as reports:
        for _ in range(MAX_EVENTS + 5):
            reports.finished(TrainerPhase.ENCODE, {})
    assert len(record(folder).events) == MAX_EVENTS
    assert record(folder).events[-1]["reason"] == "Succeeded"
