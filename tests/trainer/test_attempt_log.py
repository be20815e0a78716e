"""The log of an attempt: what remains when the pods are gone."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import yaml
from rich.console import Console

from dreambooth_api.environment import ATTEMPT
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.progress import log as progress_log
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.progress.log import LogReporter
from dreambooth_trainer.progress.redact import redact
from dreambooth_trainer.store import attempt_log
from dreambooth_trainer.store.attempt_log import MAX_BYTES, AttemptLog

SECRET = "wJalrXUtnFEMI/K7MDENG+bPxRfiCY"


@pytest.fixture
def bucket() -> Iterator[Any]:
    fs = fsspec.filesystem("memory")
    yield fs
    if fs.exists("/logbucket"):
        fs.rm("/logbucket", recursive=True)


def written(folder: Path, number: int = 1) -> str:
    return (folder / "logs" / f"attempt-{number}.log").read_text()


def test_each_run_has_a_log_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in (1, 2):
        log = AttemptLog()
        with log.recording():
            log.write(f"before {number}")
            log.open(tmp_path, None)
            log.write(f"after {number}")
        lines = [line.partition("Z ")[2] for line in written(tmp_path, number).splitlines()]
        assert lines == [f"before {number}", f"after {number}", "completed"]
    monkeypatch.setenv(ATTEMPT, "7")
    for _ in range(2):  # a container that starts again
        log = AttemptLog()
        log.open(tmp_path, None)
        log.write("seven")
    assert written(tmp_path, 7).count("seven") == 2


def test_no_log_is_written_where_nothing_is_claimed(tmp_path: Path) -> None:
    log = AttemptLog()
    with pytest.raises(UserError), log.recording():
        log.write("x")
        raise UserError(ValidationIssue("--out", "x", "is the folder of another job", "use another"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (
            UserError(ValidationIssue("spec.model.id", "x", "does not exist", "use y")),
            "error spec.model.id: 'x': does not",
        ),
        (RuntimeError("a bug"), "RuntimeError: a bug"),
        (KeyboardInterrupt(), "interrupted: KeyboardInterrupt"),
    ],
)
def test_the_error_that_ends_a_run_is_in_the_log(tmp_path: Path, error: BaseException, text: str) -> None:
    log = AttemptLog()
    with pytest.raises(type(error)), log.recording():
        log.open(tmp_path, None)
        raise error
    assert text in written(tmp_path)
    assert "completed" not in written(tmp_path)


def test_the_phases_and_warnings_are_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_log, "PROGRESS_SECONDS", 0)
    log = AttemptLog()
    reporter = LogReporter(LineReporter(Console(quiet=True)), log.write)
    with log.recording():
        log.open(tmp_path, None)
        reporter.skipped(TrainerPhase.PREPARE)
        with reporter.phase(TrainerPhase.TRAIN) as progress:
            progress.total(4)
            progress.done(2, loss=0.5)
        reporter.note("a note\nof two lines")
        logging.getLogger("library").warning("careful with %s", "it")
    text = written(tmp_path)
    for line in (
        "Z Prepare already complete", "Z Train started", "Z Train running 2/4 in 0 s  loss 0.5",
        "Z Train completed 2/4", "Z a note\n", "Z of two lines\n", "Z warning library: careful with it",
    ):  # fmt: skip
        assert line in text
    assert not [one for one in logging.getLogger().handlers if isinstance(one, attempt_log._Handler)]


def test_secrets_and_control_characters_are_not_in_the_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET)
    monkeypatch.setenv("GOOGLE_CREDENTIALS", '{\n "private": "abcdefghij"\n}')
    log = AttemptLog()
    log.open(tmp_path, None)
    with pytest.raises(RuntimeError), log.recording():
        log.write("one \x1b]52;c;ZXZpbA==\x07 \x1b[2J two\rthree ‮four")
        log.write(f"key {SECRET} and https://b/x?X-Amz-Signature=abcdef&y=1 and wJalrXUtnFEMI%2FK7MDENG%2BbPxRfiCY")
        raise RuntimeError(f'{SECRET} "private": "abcdefghij"')
    text = written(tmp_path)
    assert "wJalr" not in text
    assert "abcdef" not in text
    assert "y=1" in text
    assert not [c for c in text if ord(c) < 32 and c != "\n"]
    assert "‮" not in text
    assert "three" in text


@pytest.mark.parametrize(
    "secret",
    [
        "Authorization: Bearer abc.def-123456", "s3://user:pass-word@host/x", "hf_abcdefghijklmnopqrstuvwxyz",
        "AKIAIOSFODNN7EXAMPLE", "https://x/?token=abc123", "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJ4In0.c2ln",
    ],
)  # fmt: skip
def test_credentials_are_recognized(secret: str) -> None:
    found = redact(f"failed: {secret}")
    assert "[redacted]" in found
    for part in ("abc.def", "pass-word", "hf_abc", "EXAMPLE", "abc123", "eyJzd"):
        assert part not in found


def test_ordinary_text_is_not_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    text = "Train completed 800/800 in 63 s  loss 0.12, false, s3://bucket/dog, https://huggingface.co/a/b?x=1"
    assert redact(text) == text


def test_a_log_has_a_maximum_size_and_keeps_its_beginning_and_end(tmp_path: Path) -> None:
    log = AttemptLog()
    log.open(tmp_path, None)
    for number in range(600):
        log.write(f"line {number} " + "x" * 10_000)
    text = written(tmp_path)
    assert len(text) <= MAX_BYTES
    assert "line 0 " in text
    assert "line 599 " in text
    assert "bytes left out]" in text


def test_a_log_that_cannot_be_written_does_not_fail_the_run(tmp_path: Path) -> None:
    (tmp_path / "logs").write_text("a file")
    log = AttemptLog()
    with log.recording():
        log.open(tmp_path, "memory://logbucket")
        log.write("x")
    log = AttemptLog()
    with log.recording():
        log.open(tmp_path / "missing", None)
        log.write("x")


def test_a_log_is_uploaded_while_it_grows_and_at_the_end(
    tmp_path: Path, bucket: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempt_log, "UPLOAD_SECONDS", 0.05)
    log, key = AttemptLog(), "/logbucket/dog/logs/attempt-1.log"
    with pytest.raises(RuntimeError), log.recording():
        log.open(tmp_path, "memory://logbucket/dog/")
        log.write("first")
        while not bucket.exists(key) or b"first" not in bucket.cat_file(key):
            pass
        raise RuntimeError("last")
    assert bucket.cat_file(key) == (tmp_path / "logs" / "attempt-1.log").read_bytes()
    assert b"RuntimeError: last" in bucket.cat_file(key)


def test_a_store_that_fails_does_not_fail_the_run(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    log = AttemptLog()
    with log.recording():
        log.open(tmp_path, "unknown://bucket")
    assert "The log was not uploaded to unknown://bucket/logs/attempt-1.log: " in capfd.readouterr().err


@pytest.mark.trainer
def test_a_failing_run_leaves_its_log(tmp_path: Path) -> None:
    job = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "dog"},
        "spec": {"subject": {"class": "dog", "images": {"uri": f"{tmp_path}/{SECRET}"}}},
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    command = [sys.executable, "-m", "dreambooth_trainer", "run", "job.yaml", "--out", "out"]
    environment = {**os.environ, "AWS_SECRET_ACCESS_KEY": SECRET}
    assert subprocess.run(command, cwd=tmp_path, env=environment, check=False, timeout=400).returncode == 2
    failed = written(tmp_path / "out")
    assert "error spec.subject.images.uri: " in failed
    assert "does not exist; correct the path" in failed
    assert SECRET not in failed
