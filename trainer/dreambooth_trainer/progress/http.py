"""Reports progress to the operator: small JSON messages, authenticated by the pod's projected token.

While a run is under way, a message that cannot be delivered is replaced by the next one, and the run never waits.
The last message is different: scores, output and failure exist only there, so the process does not exit before the
operator has acknowledged it or refused it for good, or five minutes have passed.
"""

from __future__ import annotations

import contextlib
import enum
import http.client
import itertools
import os
import ssl
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import JsonValue

from dreambooth_api import environment
from dreambooth_api.metrics import METRICS
from dreambooth_api.progress import ProgressMessage, parse_fields
from dreambooth_trainer.progress.console import PhaseProgress, Reporter

SECONDS_BETWEEN = 2.0
TIMEOUT_SECONDS = 5.0
# How long the last message is retried. All replicas of the operator may be restarting, on a busy node.
LAST_MESSAGE_SECONDS = 300.0
# An interrupted process is about to be killed: 30 seconds is the usual grace period of a pod.
INTERRUPTED_SECONDS = 10.0
MAX_RETRY_SECONDS = 10.0
# Answers after which the same message may be accepted later; other 4xx answers are final.
RETRYABLE_STATUS = {401, 408, 425, 429}


class Delivery(enum.Enum):
    """What became of a message."""

    ACKNOWLEDGED = "acknowledged"
    REFUSED = "refused"  # for good: another attempt is current, or the job is gone
    FAILED = "failed"  # may succeed later


@dataclass(frozen=True)
class Operator:
    """Where to tell, and who we are.

    Attributes:
        token_file: read anew for every message, because the kubelet replaces the token.
        authority_file: certificates to trust, or None for the system's.
    """

    url: str
    token_file: Path
    authority_file: Path | None = None

    def send(self, message: ProgressMessage) -> Delivery:
        """Send one message. Raises nothing that the network or the operator may cause."""
        try:
            token = self.token_file.read_text().strip()
            request = urllib.request.Request(  # noqa: S310 - the operator wrote the URL
                self.url,
                data=message.to_json(),
                headers={"Authorization": f"Bearer {token}", "Content-Type": "application/json"},
                method="POST",
            )
            trust = ssl.create_default_context(cafile=self.authority_file) if self.url.startswith("https") else None
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS, context=trust):  # noqa: S310 - as above
                return Delivery.ACKNOWLEDGED
        except urllib.error.HTTPError as error:
            final = 400 <= error.code < 500 and error.code not in RETRYABLE_STATUS
            return Delivery.REFUSED if final else Delivery.FAILED
        except (OSError, http.client.HTTPException):
            return Delivery.FAILED


def as_shown(uri: str) -> str:
    """A place below this pod's job folder as people outside call it; any other as it is."""
    mounted, shown = os.environ.get(environment.OUT), os.environ.get(environment.OUT_SHOWN)
    return shown + uri.removeprefix(mounted) if mounted and shown and uri.startswith(mounted) else uri


def operator_from_environment() -> Operator | None:
    """The operator that started this pod, if one did."""
    url, token = os.environ.get(environment.PROGRESS_URL), os.environ.get(environment.PROGRESS_TOKEN_FILE)
    authority = os.environ.get(environment.PROGRESS_CA_FILE)
    return Operator(url, Path(token), Path(authority) if authority else None) if url and token else None


@dataclass
class OperatorReporter:
    """Reports to the operator what it reports to another reporter. A thread sends, so nothing waits before the end."""

    inner: Reporter
    operator: Operator
    _message: ProgressMessage = field(default_factory=ProgressMessage)
    _changed: threading.Event = field(default_factory=threading.Event)
    _closed: threading.Event = field(default_factory=threading.Event)
    _thread: threading.Thread | None = None

    def __enter__(self) -> OperatorReporter:
        self._thread = threading.Thread(target=self._send_changes, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Deliver the last message; how long that may take depends on why the run ends."""
        self._closed.set()
        self._changed.set()
        if self._thread is not None:
            self._thread.join(2 * TIMEOUT_SECONDS)
        interrupted = kind is not None and not issubclass(kind, Exception)
        self._deliver(INTERRUPTED_SECONDS if interrupted else LAST_MESSAGE_SECONDS)

    def _deliver(self, seconds: float) -> None:
        deadline = time.monotonic() + seconds
        for attempt in itertools.count():
            delivery = self.operator.send(self._message)
            if delivery is Delivery.ACKNOWLEDGED:
                return
            left = deadline - time.monotonic()
            if delivery is Delivery.REFUSED or left <= 0:
                why = "refused it" if delivery is Delivery.REFUSED else f"did not answer for {seconds:.0f} s"
                self.inner.note(f"The last report was not delivered: the operator {why}.")
                return
            if attempt == 0:
                self.inner.note("The operator does not answer; the last report is retried.")
            time.sleep(min(MAX_RETRY_SECONDS, 0.5 * 2 ** min(attempt, 10), left))

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[PhaseProgress]:
        self._update(phase=name)
        with self.inner.phase(name) as inner:
            yield _Telling(self, inner, name)

    def skipped(self, name: str) -> None:
        self.inner.skipped(name)

    def finished(self, name: str, result: Mapping[str, JsonValue]) -> None:
        self.inner.finished(name, result)
        match name:
            case "class-images":
                self._update(class_images={key: result[key] for key in ("wanted", "reused", "generated")})
            case "evaluate":
                self._update(scores={metric.name: result[metric.name] for metric in METRICS if metric.name in result})
            case "publish":
                self._update(output={"uri": as_shown(str(result["uri"])), "digest": result["digest"]})

    def failed(self, reason: str, message: str, *, retryable: bool) -> None:
        """The run is about to end, and why."""
        self._update(failure={"reason": reason, "message": message, "retryable": retryable})

    def note(self, text: str) -> None:
        self.inner.note(text)

    def _update(self, **changes: JsonValue) -> None:
        # A value that a report cannot hold is left out: reporting does not end a run.
        self._message, _ = parse_fields({**self._message.model_dump(), **changes})
        self._changed.set()

    def _send_changes(self) -> None:
        while not self._closed.is_set():
            self._changed.wait()
            self._changed.clear()
            if self._closed.is_set():
                return
            if self.operator.send(self._message) is Delivery.FAILED:
                self._changed.set()
            self._closed.wait(SECONDS_BETWEEN)


@dataclass
class _Telling:
    reporter: OperatorReporter
    inner: PhaseProgress
    name: str
    wanted: int = 0
    first: tuple[float, int] | None = None

    def total(self, count: int) -> None:
        self.wanted = count
        self.inner.total(count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.inner.done(count, **facts)
        if self.name != "train":
            return
        now = time.monotonic()
        self.first = self.first or (now, count)
        seconds, steps = now - self.first[0], count - self.first[1]
        rate = steps / seconds if seconds and steps else None
        changes: dict[str, JsonValue] = {"step": count, "steps": self.wanted}
        if "loss" in facts:
            changes["loss"] = facts["loss"]
        if rate is not None:
            changes |= {"steps_per_second": round(rate, 3), "eta_seconds": round((self.wanted - count) / rate)}
        self.reporter._update(**changes)
