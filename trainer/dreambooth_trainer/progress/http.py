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
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from dreambooth_api import environment
from dreambooth_api.progress import MAX_REPORT_SECONDS, ProgressMessage, ProgressReply, parse_reply
from dreambooth_trainer.progress.forwarding import ForwardingReporter

# Between any two messages, so that changes at nearly the same time are one message.
MIN_INTERVAL_SECONDS = 2.0
REQUEST_TIMEOUT_SECONDS = 5.0
# Deadline of the last message. All replicas of the operator may be restarting on a busy node.
LAST_MESSAGE_SECONDS = 300.0
# Deadline of the last message of an interrupted process: the default grace period of a pod is 30 seconds.
INTERRUPTED_SECONDS = 10.0
MAX_BACKOFF_SECONDS = 10.0
MAX_REPLY_BYTES = 64 * 1024
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


def operator_from_environment() -> Operator | None:
    """The operator that started this pod; None outside a pod."""
    url, token = os.environ.get(environment.PROGRESS_URL), os.environ.get(environment.PROGRESS_TOKEN_FILE)
    ca_file = os.environ.get(environment.PROGRESS_CA_FILE)
    return Operator(url, Path(token), Path(ca_file)) if url and token and ca_file else None


@dataclass
class OperatorReporter(ForwardingReporter):
    """Forwards progress to another reporter and, from a background thread, to the operator.

    `_changed` is set if the message has not been delivered, `_urgent` if it must not wait for the interval.
    """

    operator: Operator
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
            delivery = self.operator.send(self.message).delivery
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

    def changed(self, *, urgent: bool) -> None:
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
            answer = self.operator.send(self.message)
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
