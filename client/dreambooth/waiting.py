"""Waiting for a job, with its progress in a notebook, on a terminal, or as lines."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.console import Console
from rich.live import Live

from dreambooth.backend import Object
from dreambooth.errors import JobFailedError, JobNotFoundError, UnreachableError
from dreambooth.html import job_html
from dreambooth_api.status import ConditionType, Phase, parse_status, printable
from dreambooth_operator.kubectl_plugin.render import is_finished, render
from dreambooth_operator.kubectl_plugin.wanted import Wanted, is_met, parse_wanted

POLL_SECONDS = 1.0


@dataclass(frozen=True)
class Wait:
    """What to wait for.

    Attributes:
        timeout: seconds; None waits without a limit.
    """

    name: str
    until: Phase | ConditionType | str
    timeout: float | None

    @property
    def wanted(self) -> Wanted:
        """The phase or the condition. A name that both have is the phase.

        Raises:
            ValueError: it is not known.
        """
        if self.until in list(Phase):
            return Wanted("phase", self.until.lower())
        if self.until in list(ConditionType):
            return Wanted("condition", self.until.lower())
        return parse_wanted(self.until)


def wait_for(read: Callable[[], Object], wait: Wait, *, progress: bool) -> None:
    """Wait for a job.

    Args:
        read: the job.

    Raises:
        TimeoutError: the timeout expired.
        JobFailedError: the job failed, was rejected, or finished without reaching it.
        ClientError: the job cannot be read. After the first time, an `UnreachableError` is tried again.
    """
    wanted = wait.wanted
    deadline = None if wait.timeout is None else time.monotonic() + wait.timeout
    with _display(progress=progress) as show:
        job = _read(read, wanted)
        while True:
            if job is None:
                return
            show(job)
            if wanted.kind != "delete":
                if is_met(dict(job), wanted):
                    return
                _check_possible(wait, job)
            if deadline is not None and time.monotonic() >= deadline:
                status = parse_status(job.get("status") or {})
                state = printable(f"{status.phase}: {status.message}".rstrip(": "))
                raise TimeoutError(f"job {wait.name} has not reached {wait.until} in {wait.timeout:g} s; {state}")
            time.sleep(POLL_SECONDS if deadline is None else max(0, min(POLL_SECONDS, deadline - time.monotonic())))
            try:
                job = _read(read, wanted)
            except UnreachableError:  # the API server may be restarting
                if deadline is not None and time.monotonic() >= deadline:
                    raise


def _read(read: Callable[[], Object], wanted: Wanted) -> Object | None:
    """The job; None if it was deleted, as it should be."""
    try:
        return read()
    except JobNotFoundError:
        if wanted.kind == "delete":
            return None
        raise


def _check_possible(wait: Wait, job: Object) -> None:
    """Raise an error if a job that has not reached what is wanted has finished or was rejected."""
    status = parse_status(job.get("status") or {})
    if not is_finished(dict(job)) and status.phase is not Phase.REJECTED:
        return
    reasons = {condition.type: condition for condition in status.conditions}
    cause = reasons.get(ConditionType.ACCEPTED if status.phase is Phase.REJECTED else ConditionType.FAILED)
    reason = cause.reason if cause else status.phase
    message = f"failed: {(cause and cause.message) or status.message or reason}"
    if status.phase is Phase.SUCCEEDED:
        message = f"finished without reaching {wait.until}; phase {status.phase}: {status.message}"
    raise JobFailedError(wait.name, reason, printable(message))


@contextlib.contextmanager
def _display(*, progress: bool) -> Generator[Callable[[Object], None]]:
    """A function that shows a job."""
    if not progress:
        yield lambda _: None
    elif (display := _notebook_display()) is not None:
        # Not rich: in notebooks, its live display needs ipywidgets.
        handle = display(_Html(""), display_id=True)
        yield lambda job: handle.update(_Html(job_html(job, None)))
    elif sys.stdout.isatty():
        with Live(console=Console()) as live:
            yield lambda job: live.update(render(dict(job), datetime.now(UTC)))
    else:
        yield _Lines().show


def _notebook_display() -> Callable[..., Any] | None:
    """The function `display` of IPython, in a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython and ipython.get_ipython()
    if ipython is None or shell is None or type(shell).__name__ != "ZMQInteractiveShell":
        return None
    return ipython.display.display


@dataclass(frozen=True)
class _Html:
    """What a notebook shows as HTML."""

    content: str

    def _repr_html_(self) -> str:
        return self.content


@dataclass
class _Lines:
    last: str = ""

    def show(self, job: Object) -> None:
        status = parse_status(job.get("status") or {})
        line = printable(f"{status.phase}: {status.message}".rstrip(": "))
        if line != self.last:
            self.last = line
            print(line, flush=True)
