"""The interval that the operator asks for: progress waits for it, new phases and results do not."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from test_progress_http import AUTHORITY, Listener, silent

from dreambooth_api.progress import MAX_REPORT_SECONDS, ProgressReply, parse_reply
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.progress import http
from dreambooth_trainer.progress.http import Operator, OperatorReporter

RESULT = {"key": "k", "seconds": 1.0}
SHORT_SECONDS = 0.01


@pytest.fixture
def token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(http, "MIN_INTERVAL_SECONDS", SHORT_SECONDS)
    path = tmp_path / "token"
    path.write_text("token")
    return path


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text(AUTHORITY.trusted())
    return path


def until(what: str, holds: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def has(listener: Listener, **fields: object) -> bool:
    """Whether a received message has these fields."""
    return any(fields.items() <= message.items() for _, message in listener.received)


def train(reporter: OperatorReporter, steps: int) -> None:
    """Train for at least 20 times the shortest interval."""
    with reporter.phase(TrainerPhase.TRAIN) as progress:
        progress.total(steps)
        for count in range(steps):
            progress.done(count)
            time.sleep(SHORT_SECONDS)


def test_progress_waits_for_the_interval_and_results_do_not(token: Path, ca_file: Path) -> None:
    listener = Listener(reply=b'{"message": "written", "nextReportSeconds": 500}')
    with OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter:
        with reporter.phase(TrainerPhase.PREPARE):
            until("the phase is sent", lambda: has(listener, phase="Prepare"))
        train(reporter, 40)
        until("the next phase is sent", lambda: has(listener, phase="Train"))
        assert len(listener.received) <= 3, "no progress is sent before the interval has passed"
        reporter.finished(TrainerPhase.EVALUATE, {**RESULT, "dino": 0.7})
        until("scores are sent", lambda: has(listener, scores={"dino": 0.7}))
        output = {"uri": "s3://b/x", "digest": "sha256:0"}
        reporter.finished(TrainerPhase.PUBLISH, {**RESULT, **output})
        until("the output is sent", lambda: has(listener, output=output))
        reporter.failed("Boom", "m", retryable=False)
        until(
            "the failure is sent", lambda: has(listener, failure={"reason": "Boom", "message": "m", "retryable": False})
        )
        with reporter.phase(TrainerPhase.TRAIN) as progress:
            progress.total(50)
            progress.done(49)
    assert listener.received[-1][1]["step"] == 49, "the last message has the progress that was not sent"
    listener.server.shutdown()


@pytest.mark.parametrize("reply", [b"", b"{", b"[]", b'{"message": "written"}', b'{"nextReportSeconds": "never"}'])
def test_progress_is_sent_at_the_shortest_interval_without_a_valid_one(
    token: Path, ca_file: Path, reply: bytes
) -> None:
    listener = Listener(reply=reply)
    steps = itertools.count(1)
    with (
        OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter,
        reporter.phase(TrainerPhase.TRAIN) as progress,
    ):
        progress.total(1_000_000)
        until("progress is sent", lambda: progress.done(next(steps)) or len(listener.received) >= 5)
    listener.server.shutdown()


def test_urgent_message_that_fails_is_sent_again(token: Path, ca_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "MAX_BACKOFF_SECONDS", 0.05)
    listener = Listener(statuses=(503, 401, 500), reply=b'{"nextReportSeconds": 0.01}')
    with OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter:
        reporter.finished(TrainerPhase.EVALUATE, {**RESULT, "dino": 0.7})
        until("it is delivered", lambda: len(listener.received) >= 4)
        assert has(listener, scores={"dino": 0.7})
    listener.server.shutdown()


@pytest.mark.parametrize(
    ("asked", "interval"),
    [(None, 2), (0, 2), (1.5, 2), (10, 10), (200, 200), (MAX_REPORT_SECONDS + 1, MAX_REPORT_SECONDS), (1e300, 600)],
)
def test_interval_has_bounds(asked: float | None, interval: float) -> None:
    assert http._interval_seconds(ProgressReply(next_report_seconds=asked)) == interval


@pytest.mark.parametrize(
    "body",
    [
        b"", b"\xff", b"[1]", b"3", b"null", b"[" * 9999, b'{"nextReportSeconds": -1}', b'{"nextReportSeconds": NaN}',
        b'{"nextReportSeconds": Infinity}', b'{"nextReportSeconds": {"seconds": 3}}', b'{"message": 3, "next": 5}',
    ],
)  # fmt: skip
def test_any_reply_can_be_read(body: bytes) -> None:
    assert parse_reply(body) == ProgressReply()


def test_reply_reads_as_it_was_written() -> None:
    reply = ProgressReply(message="written", next_report_seconds=200)
    assert parse_reply(reply.to_json()) == reply
    assert b'"nextReportSeconds":200' in reply.to_json()
