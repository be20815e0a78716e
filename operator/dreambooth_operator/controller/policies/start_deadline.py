"""`spec.runPolicy.startDeadlineSeconds`: limit on the time that a job waits for a running trainer. Pure.

A job waits in a queue, for its pods, and between attempts that did not run. The time starts again when a running job
has to wait again, for example after a preemption. Suspended time does not count.
"""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder

START_DEADLINE_EXCEEDED = "StartDeadlineExceeded"


def start_deadline_exceeded(builder: DecisionBuilder, policy: RunPolicy) -> Failure | None:
    """A failure if the job has waited too long. Otherwise the job is reconciled again when it has."""
    since, limit_seconds = builder.status.waiting_since, policy.start_deadline_seconds
    if since is None or limit_seconds is None:
        return None
    left_seconds = limit_seconds - (builder.now - since).total_seconds()
    if left_seconds > 0:
        builder.requeue_after(left_seconds)
        return None
    message = (
        f"The trainer did not run within {limit_seconds} s, the limit set by spec.runPolicy.startDeadlineSeconds. "
        f"Last state: {builder.status.message}"
    )
    return Failure(reason=START_DEADLINE_EXCEEDED, message=message, retryable=False)


def start_waiting(builder: DecisionBuilder) -> None:
    """Count waiting time from now on, if it is not being counted already."""
    if builder.status.waiting_since is None:
        builder.set_fields(waiting_since=builder.now)


def stop_waiting(builder: DecisionBuilder) -> None:
    """The trainer runs, the job is suspended, or it has ended."""
    builder.set_fields(waiting_since=None, starting_since=None)
