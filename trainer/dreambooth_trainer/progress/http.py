"""Reports progress to the operator in small JSON messages, authenticated by the pod's projected token.

During a run, a message that cannot be delivered is replaced by the next one, and the run is not delayed. New phases
and results are sent at once; progress within a phase is sent at the interval that the operator asks for. The last
message is essential, because scores, output and failure are only in there: the process does not exit until the
operator has acknowledged or rejected it, or five minutes have passed.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import itertools
import os
import random
import ssl
import threading
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import JsonValue

from dreambooth_api import environment
from dreambooth_api.metrics import METRICS
from dreambooth_api.model import BaseModelRef
from dreambooth_api.progress import MAX_REPORT_SECONDS, ProgressMessage, ProgressReply, parse_fields, parse_reply
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.progress.console import PhaseProgress, Reporter

# Between any two messages, so that changes at nearly the same time are one message.
MIN_INTERVAL_SECONDS = 2.0
REQUEST_TIMEOUT_SECONDS = 5.0
# Deadline of the last message. All replicas of the operator may be restarting on a busy node.
LAST_MESSAGE_SECONDS = 300.0
# Deadline of the last message of an interrupted process: the default grace period of a pod is 30 seconds.
INTERRUPTED_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 10.0
MAX_REPLY_BYTES = 64 * 1024
# The operator closes an attempt that does not report for spec.runPolicy.progressDeadlineSeconds.
PROGRESS_INTERVAL_SECONDS = 60.0
# Client errors after which a retry may succeed; all other 4xx status codes are final.
RETRYABLE_STATUS = {401, 408, 425, 429}


class Delivery(enum.Enum):
    """Outcome of sending a message."""

    ACKNOWLEDGED = "acknowledged"
    REJECTED = "rejected"  # final: the attempt is not current, or the job does not exist
    FAILED = "failed"  # a retry may succeed
    UNVERIFIED = "unverified"  # the same; the server is not the operator, or its authority has been replaced


@dataclass(frozen=True)
class Answer:
    """Outcome of sending a message, and the operator's reply, which is empty if there is none."""

    delivery: Delivery
    reply: ProgressReply = field(default_factory=ProgressReply)


@dataclass(frozen=True)
class Operator:
    """Endpoint of the operator, and the credentials for it.

    Attributes:
        url: of scheme https. Proxies of the environment are not used for it, because it is in the cluster.
        token_file: read for every message, because the kubelet rotates the token.
        ca_file: the only certificates by which the server is verified.
    """

    url: str
    token_file: Path
    ca_file: Path

    def send(self, message: ProgressMessage) -> Answer:
        """Send a message. Does not raise errors of the network or the operator."""
        try:
            token = self.token_file.read_text().strip()
            tls = ssl.create_default_context(cafile=self.ca_file)
            server = urlsplit(self.url)
            connection = http.client.HTTPSConnection(server.netloc, timeout=REQUEST_TIMEOUT_SECONDS, context=tls)
            with contextlib.closing(connection):
                headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
                connection.request("POST", server.path, message.to_json(), headers)
                response = connection.getresponse()
                if 200 <= response.status < 300:
                    return Answer(Delivery.ACKNOWLEDGED, _read_reply(response))
        except ssl.SSLCertVerificationError:
            return Answer(Delivery.UNVERIFIED)
        except (OSError, http.client.HTTPException):
            return Answer(Delivery.FAILED)
        is_final = 400 <= response.status < 500 and response.status not in RETRYABLE_STATUS
        return Answer(Delivery.REJECTED if is_final else Delivery.FAILED)


def _read_reply(response: http.client.HTTPResponse) -> ProgressReply:
    """The reply. The message was accepted, even if the rest of the response does not arrive."""
    try:
        return parse_reply(response.read(MAX_REPLY_BYTES))
    except (OSError, http.client.HTTPException):
        return ProgressReply()


def external_uri(uri: str) -> str:
    """Replace the mount path of the job's folder by the volume's URI. Other URIs are not changed."""
    mounted, external = os.environ.get(environment.OUT), os.environ.get(environment.OUT_SHOWN)
    return external + uri.removeprefix(mounted) if mounted and external and uri.startswith(mounted) else uri


def operator_from_environment() -> Operator | None:
    """The operator that started this pod; None outside a pod."""
    url, token = os.environ.get(environment.PROGRESS_URL), os.environ.get(environment.PROGRESS_TOKEN_FILE)
    ca_file = os.environ.get(environment.PROGRESS_CA_FILE)
    return Operator(url, Path(token), Path(ca_file)) if url and token and ca_file else None


@dataclass
class OperatorReporter:
    """Forwards progress to another reporter and, from a background thread, to the operator.

    `_changed` is set if the message has not been delivered, `_urgent` if it must not wait for the interval.
    """

    inner: Reporter
    operator: Operator
    _message: ProgressMessage = field(default_factory=ProgressMessage)
    _changed: threading.Event = field(default_factory=threading.Event)
    _urgent: threading.Event = field(default_factory=threading.Event)
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> OperatorReporter:
        self._thread = threading.Thread(target=self._send_changes, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Deliver the last message. The deadline is short if the run was interrupted."""
        self._closed.set()
        self._urgent.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(2 * REQUEST_TIMEOUT_SECONDS)
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._deliver(INTERRUPTED_SECONDS if interrupted else LAST_MESSAGE_SECONDS)

    def _deliver(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            delivery = self.operator.send(self._message).delivery
            if delivery is Delivery.ACKNOWLEDGED:
                return
            remaining = deadline - time.monotonic()
            if delivery is Delivery.REJECTED or remaining <= 0:
                rejected = delivery is Delivery.REJECTED
                reason = "rejected it" if rejected else f"did not acknowledge it within {seconds:.0f} s"
                self.inner.note(f"The last progress report was not delivered: the operator {reason}.")
                return
            if attempt == 0:
                unverified = "cannot be verified by the certificates that this attempt was started with"
                problem = unverified if delivery is Delivery.UNVERIFIED else "does not respond"
                self.inner.note(f"The operator {problem}. Retrying the last progress report.")
            time.sleep(min(MAX_BACKOFF_SECONDS, 0.5 * 2 ** min(attempt, 10), remaining))

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        self._update(phase=name)
        with self.inner.phase(name) as inner:
            yield _ForwardedProgress(self, inner, name)

    def skipped(self, name: TrainerPhase) -> None:
        self.inner.skipped(name)

    def finished(self, name: TrainerPhase, result: Mapping[str, JsonValue]) -> None:
        self.inner.finished(name, result)
        match name:
            case TrainerPhase.CLASS_IMAGES:
                counts = ("wanted", "reused", "generated", "provided")
                self._update(class_images={key: result[key] for key in counts if result.get(key) is not None})
            case TrainerPhase.EVALUATE:
                scores: JsonValue = {metric.name: result[metric.name] for metric in METRICS if metric.name in result}
                self._update(scores=scores, subject_scores=result.get("subjects") or None)
            case TrainerPhase.PUBLISH:
                self._update(output={"uri": external_uri(str(result["uri"])), "digest": result["digest"]})

    def pinned(self, model: BaseModelRef) -> None:
        """Report the commits of a model's stages from the Hub, with which later attempts are started."""
        second = model.super_resolution
        self._update(model_commit=model.revision, super_resolution_commit=second and second.revision)

    def failed(self, reason: str, message: str, *, retryable: bool) -> None:
        """Report why the run failed, in the last message."""
        self._update(failure={"reason": reason, "message": message, "retryable": retryable})

    def note(self, text: str) -> None:
        self.inner.note(text)

    def _update(self, *, urgent: bool = True, **changes: JsonValue) -> None:
        # Invalid values are dropped, because reporting must not fail a run.
        self._message, _ = parse_fields({**self._message.model_dump(), **changes})
        if urgent:
            self._urgent.set()
        self._changed.set()

    def _send_changes(self) -> None:
        """Send changes until closed. A message that fails is sent again after a delay that doubles each time."""
        interval, failures, due = MIN_INTERVAL_SECONDS, 0, time.monotonic()
        while True:
            self._changed.wait()
            self._urgent.wait(due - time.monotonic())
            if self._closed.is_set():
                return
            self._changed.clear()
            self._urgent.clear()
            answer = self.operator.send(self._message)
            if answer.delivery in (Delivery.FAILED, Delivery.UNVERIFIED):
                failures += 1
                self._changed.set()
                backoff = min(MIN_INTERVAL_SECONDS * 2 ** min(failures, 10), max(interval, MAX_BACKOFF_SECONDS))
                due = time.monotonic() + backoff * random.uniform(0.5, 1)  # noqa: S311 - spreads load
            else:
                failures = 0
                if answer.delivery is Delivery.ACKNOWLEDGED:
                    interval = _interval_seconds(answer.reply)
                due = time.monotonic() + interval
            self._closed.wait(MIN_INTERVAL_SECONDS)


def _interval_seconds(reply: ProgressReply) -> float:
    """The interval between two progress messages. An older operator does not ask for one."""
    return min(max(reply.next_report_seconds or 0, MIN_INTERVAL_SECONDS), MAX_REPORT_SECONDS)


@dataclass
class _ForwardedProgress:
    reporter: OperatorReporter
    inner: PhaseProgress
    name: TrainerPhase
    steps: int = 0
    first: tuple[float, int] | None = None
    sent: float = field(default_factory=time.monotonic)

    def total(self, count: int) -> None:
        self.steps = count
        self.inner.total(count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.inner.done(count, **facts)
        now = time.monotonic()
        if self.name is not TrainerPhase.TRAIN:
            if now - self.sent >= PROGRESS_INTERVAL_SECONDS:
                self.sent = now
                self.reporter._update(urgent=False)
            return
        self.first = self.first or (now, count)
        seconds, completed = now - self.first[0], count - self.first[1]
        rate = completed / seconds if seconds and completed else None
        changes: dict[str, JsonValue] = {"step": count, "steps": self.steps}
        changes |= {name: facts[name] for name in ("loss", "samples", "world_size", "saved_step") if name in facts}
        if rate is not None:
            changes |= {"steps_per_second": round(rate, 3), "eta_seconds": round((self.steps - count) / rate)}
        self.reporter._update(urgent=False, **changes)
