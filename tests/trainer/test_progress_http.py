"""Progress messages to the operator, over real sockets with TLS."""

from __future__ import annotations

import json
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from dreambooth_api import environment
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.progress import ProgressMessage
from dreambooth_api.status import TrainerPhase
from dreambooth_operator.machinery.certificates import issue, renew_authority
from dreambooth_trainer.progress import forwarding, http
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.progress.forwarding import external_uri
from dreambooth_trainer.progress.http import (
    Delivery,
    Operator,
    OperatorReporter,
    operator_from_environment,
)

# Certificates for this machine.
AUTHORITY = renew_authority(None, "test", datetime.now(UTC))
SERVER = issue(AUTHORITY, "127.0.0.1", datetime.now(UTC))


class Listener:
    """An HTTPS server that records messages. It responds with the given status codes, then with 202 and `reply`."""

    def __init__(self, port: int = 0, statuses: tuple[int, ...] = (), reply: bytes = b"") -> None:
        received = self.received = []
        remaining = list(statuses)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                received.append((self.headers["Authorization"], json.loads(body)))
                self.send_response(remaining.pop(0) if remaining else 202)
                self.send_header("Content-Length", str(len(reply)))
                self.end_headers()
                self.wfile.write(reply)

            def log_message(self, *args: object) -> None: ...

        self.server = HTTPServer(("127.0.0.1", port), Handler)
        tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        with tempfile.NamedTemporaryFile() as file:
            file.write(SERVER.key_pem() + SERVER.certificate_pem())
            file.flush()
            tls.load_cert_chain(file.name)
        self.server.socket = tls.wrap_socket(self.server.socket, server_side=True)
        self.url = f"https://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()


@pytest.fixture
def listener() -> Iterator[Listener]:
    listener = Listener()
    yield listener
    listener.server.shutdown()


@pytest.fixture
def token(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("first\n")
    return path


@pytest.fixture
def ca_file(tmp_path: Path) -> Path:
    path = tmp_path / "ca.crt"
    path.write_text(AUTHORITY.trusted())
    return path


def silent() -> LineReporter:
    return LineReporter(Console(quiet=True))


def test_the_last_message_is_complete(listener: Listener, token: Path, ca_file: Path) -> None:
    with OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter:
        reporter.finished(
            TrainerPhase.CLASS_IMAGES, {"key": "k", "seconds": 1.0, "wanted": 8, "reused": 3, "generated": 5}
        )
        with reporter.phase(TrainerPhase.TRAIN) as progress:
            progress.total(100)
            progress.done(10, loss=0.5)
            progress.done(30, loss=0.25, samples=120, world_size=4, saved_step=20, selected_step=10)
        scores = {"dino": 0.7, "clipI": 0.8, "clipT": 0.3, "subjects": {"sks": {"dino": 0.9}}}
        reporter.finished(TrainerPhase.EVALUATE, {"key": "k", "seconds": 1.0, **scores})
        reporter.finished(TrainerPhase.PUBLISH, {"key": "k", "seconds": 1.0, "uri": "/out", "digest": "sha256:0"})
    authorization, last = listener.received[-1]
    assert authorization == "Bearer first"
    assert last["phase"] == "Train"
    assert (last["step"], last["steps"], last["loss"]) == (30, 100, 0.25)
    assert (last["samples"], last["worldSize"], last["savedStep"]) == (120, 4, 20)
    assert last["selectedStep"] == 10
    assert last["etaSeconds"] >= 0
    assert last["classImages"] == {"wanted": 8, "reused": 3, "generated": 5}
    assert last["scores"] == {"dino": 0.7, "clipI": 0.8, "clipT": 0.3}
    assert last["subjectScores"] == {"sks": {"dino": 0.9}}
    assert last["output"] == {"uri": "/out", "digest": "sha256:0"}


def test_the_token_is_read_for_every_message(listener: Listener, token: Path, ca_file: Path) -> None:
    operator = Operator(listener.url, token, ca_file)
    assert operator.send(ProgressMessage(step=1)).delivery is Delivery.ACKNOWLEDGED
    token.write_text("second\n")
    assert operator.send(ProgressMessage(step=2)).delivery is Delivery.ACKNOWLEDGED
    assert [authorization for authorization, _ in listener.received] == ["Bearer first", "Bearer second"]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def test_the_last_message_is_retried_until_the_operator_is_back(token: Path, ca_file: Path) -> None:
    port, listeners = free_port(), []
    restart = threading.Timer(3, lambda: listeners.append(Listener(port)))
    with OperatorReporter(silent(), Operator(f"https://127.0.0.1:{port}/v1", token, ca_file)) as reporter:
        reporter.finished(TrainerPhase.EVALUATE, {"key": "k", "seconds": 1.0, "dino": 0.7})
        reporter.finished(TrainerPhase.PUBLISH, {"key": "k", "seconds": 1.0, "uri": "/out", "digest": "sha256:0"})
        restart.start()
    restart.join()
    listeners[0].server.shutdown()
    last = listeners[0].received[-1][1]
    assert (last["scores"], last["output"]["digest"]) == ({"dino": 0.7}, "sha256:0")


@pytest.mark.parametrize("status", [401, 408, 429, 500, 503])
def test_the_last_message_is_retried_until_it_is_acknowledged(token: Path, ca_file: Path, status: int) -> None:
    listener = Listener(statuses=(status, status, status))
    try:
        with (
            pytest.raises(RuntimeError),
            OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter,
        ):
            reporter.failed(environment.OUT_OF_MEMORY, "no memory", retryable=False)
            raise RuntimeError("the run failed")
    finally:
        listener.server.shutdown()
    assert len(listener.received) >= 4
    assert listener.received[-1][1]["failure"]["reason"] == environment.OUT_OF_MEMORY


@pytest.mark.parametrize("status", [400, 403, 404, 409])
def test_a_final_rejection_ends_the_retries(token: Path, ca_file: Path, status: int) -> None:
    listener = Listener(statuses=(status,) * 100)
    try:
        with OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter:
            reporter.failed(environment.OUT_OF_MEMORY, "no memory", retryable=False)
    finally:
        listener.server.shutdown()
    assert len(listener.received) <= 2


def test_an_interrupted_run_exits_within_its_grace_period(
    token: Path, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "INTERRUPTED_SECONDS", 0.5)
    start = time.monotonic()
    with (
        pytest.raises(KeyboardInterrupt),
        OperatorReporter(silent(), Operator(f"https://127.0.0.1:{free_port()}/v1", token, ca_file)) as reporter,
    ):
        reporter.failed("X", "y", retryable=True)
        raise KeyboardInterrupt
    assert time.monotonic() - start < http.LAST_MESSAGE_SECONDS / 2


def test_an_unreachable_operator_does_not_fail_a_run(
    token: Path, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "LAST_MESSAGE_SECONDS", 0.5)
    with OperatorReporter(silent(), Operator("https://127.0.0.1:9/v1", token, ca_file)) as reporter:
        reporter.failed(environment.INVALID_INPUT, "spec.subject.class: ...", retryable=False)
        with reporter.phase(TrainerPhase.PREPARE) as progress:
            progress.done(1)


def test_a_message_that_was_not_delivered_is_sent_again(listener: Listener, tmp_path: Path, ca_file: Path) -> None:
    late = tmp_path / "late-token"
    with OperatorReporter(silent(), Operator(listener.url, late, ca_file)) as reporter:
        reporter.failed(environment.OUT_OF_MEMORY, "no memory", retryable=True)
        late.write_text("token")
    assert listener.received[-1][1]["failure"] == {
        "reason": environment.OUT_OF_MEMORY,
        "message": "no memory",
        "retryable": True,
    }


def test_long_phases_report_that_they_progress(
    listener: Listener, token: Path, ca_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(http, "MIN_INTERVAL_SECONDS", 0.01)
    monkeypatch.setattr(forwarding, "PROGRESS_INTERVAL_SECONDS", 0.05)
    with (
        OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter,
        reporter.phase(TrainerPhase.CLASS_IMAGES) as progress,
    ):
        started = time.monotonic()
        progress.total(50)
        for count in range(50):
            progress.done(count)
            time.sleep(0.01)
        received, intervals = (
            len(listener.received),
            (time.monotonic() - started) / forwarding.PROGRESS_INTERVAL_SECONDS,
        )
    assert 3 <= received <= 2 + intervals, "one report at the start, then one per interval"


def test_training_before_its_first_step_reports_that_it_progresses(monkeypatch: pytest.MonkeyPatch) -> None:
    changes: list[object] = []

    class Recorder(forwarding.ForwardingReporter):
        def changed(self, *, urgent: bool) -> None:
            changes.append(self.message.step)

    monkeypatch.setattr(forwarding, "PROGRESS_INTERVAL_SECONDS", 0)
    with Recorder(silent()).phase(TrainerPhase.TRAIN) as progress:
        progress.total(50)
        progress.done(0)
        progress.done(7, loss=0.5)
    assert changes == [None, None, 7], "a step that an earlier attempt has reported is not replaced by 0"


def test_token_is_not_sent_to_a_server_that_is_not_verified(
    listener: Listener, token: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its certificate is of another authority than the one that the operator has handed over."""
    other = tmp_path / "other.crt"
    other.write_text(renew_authority(None, "test", datetime.now(UTC)).trusted())
    monkeypatch.setattr(http, "LAST_MESSAGE_SECONDS", 0.5)
    output = StringIO()
    inner = LineReporter(Console(file=output, width=200))
    with OperatorReporter(inner, Operator(listener.url, token, other)) as reporter:
        reporter.failed("X", "y", retryable=True)
    assert "The operator cannot be verified by the certificates that this attempt was started with" in output.getvalue()
    assert listener.received == []


def test_token_is_not_sent_without_tls(token: Path, ca_file: Path) -> None:
    received: list[bytes] = []

    def record(plain: socket.socket) -> None:
        connection, _ = plain.accept()
        with connection:
            received.append(connection.recv(4096))

    with socket.create_server(("127.0.0.1", 0)) as plain:
        thread = threading.Thread(target=record, args=(plain,), daemon=True)
        thread.start()
        url = f"http://127.0.0.1:{plain.getsockname()[1]}/v1"
        assert Operator(url, token, ca_file).send(ProgressMessage(step=1)).delivery is Delivery.FAILED
        thread.join(20)
    assert received
    assert b"first" not in received[0]


def test_outside_a_pod_there_is_no_operator(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(environment.PROGRESS_URL, raising=False)
    assert operator_from_environment() is None


@pytest.mark.parametrize(
    ("uri", "external"),
    [
        (f"{environment.OUTPUT_PATH}/dog/model", "pvc://models/dog/model"),
        ("s3://bucket/dreambooth/output/dog", "s3://bucket/dreambooth/output/dog"),
    ],
)
def test_only_paths_in_the_mounted_folder_are_replaced(
    monkeypatch: pytest.MonkeyPatch, uri: str, external: str
) -> None:
    monkeypatch.setenv(environment.OUT, f"{environment.OUTPUT_PATH}/dog")
    monkeypatch.setenv(environment.OUT_SHOWN, "pvc://models/dog")
    assert external_uri(uri) == external


@pytest.mark.parametrize(("revision", "reported"), [("a" * 40, "a" * 40), ("main", None), (None, None)])
def test_commit_of_the_base_model_is_reported(
    listener: Listener, token: Path, ca_file: Path, revision: str | None, reported: str | None
) -> None:
    with OperatorReporter(silent(), Operator(listener.url, token, ca_file)) as reporter:
        second = ModelSource(id="org/second", revision=revision)
        reporter.pinned(BaseModelRef(id="org/base", revision=revision, super_resolution=second))
    message = listener.received[-1][1]
    assert message.get("modelCommit") == message.get("superResolutionCommit") == reported
