"""`spec.runPolicy.activeDeadlineSeconds`: limit on the running time of a job, summed over all attempts. Pure.

Running time excludes the time in which a job waits in a queue, for its pods, between attempts, or suspended.
"""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder

DEADLINE_EXCEEDED = "DeadlineExceeded"


def deadline_exceeded(builder: DecisionBuilder, policy: RunPolicy) -> Failure | None:
    """A failure if the deadline has passed. Otherwise the job is reconciled again when it passes."""
    if policy.active_deadline_seconds is None:
        return None
    left_seconds = policy.active_deadline_seconds - active_seconds(builder)
    if left_seconds > 0:
        builder.requeue_after(left_seconds)
        return None
    message = (
        f"The job was active for {policy.active_deadline_seconds} s over all attempts, the limit set by "
        "spec.runPolicy.activeDeadlineSeconds."
    )
    return Failure(reason=DEADLINE_EXCEEDED, message=message, retryable=False)


def start_clock(builder: DecisionBuilder) -> None:
    """Count running time from now on, if it is not being counted already."""
    if builder.status.active_since is None:
        builder.set_fields(active_since=builder.now)


def pause_clock(builder: DecisionBuilder) -> None:
    """Stop counting running time until the next attempt runs."""
    if builder.status.active_since:
        builder.set_fields(active_since=None, active_seconds=active_seconds(builder))


def active_seconds(builder: DecisionBuilder) -> int:
    """Running time over all attempts."""
    status = builder.status
    current = (builder.now - status.active_since).total_seconds() if status.active_since else 0
    return status.active_seconds + max(0, int(current))
