"""How an attempt ends without success, and how its job does: at once, or by a report that comes late."""

from __future__ import annotations

from datetime import timedelta

from dreambooth_api.job import RunPolicy
from dreambooth_api.status import ConditionType, Failure, JobStatus, Phase
from dreambooth_operator.controller.draft import Draft
from dreambooth_operator.controller.judge import reported_failure, tell_reached
from dreambooth_operator.controller.rayjob import Settings

DEADLINE = "DeadlineExceeded"
_BACKOFF = "BackoffLimitExceeded"
_C = ConditionType


def close(draft: Draft, failure: Failure, policy: RunPolicy, settings: Settings, *, counts: bool = True) -> None:
    """The open attempt is over and did not succeed. `counts` says whether it uses up a retry.

    What the trainer reported as its failure, now or later, is closer to the cause than `failure`.
    """
    status = draft.job.status
    failure = reported_failure(status) or failure
    pause_clock(draft)
    failures = status.failures + (1 if counts else 0)
    draft.set(failures=failures, last_failure=failure, head_lost_since=None)
    draft.condition(_C.CLUSTER_READY, "False", failure.reason, failure.message)
    told = _attempt_failed(status, failure)
    if not failure.retryable:
        fail(draft, failure.reason, failure.message)
    elif failures > policy.backoff_limit and counts:
        fail(draft, _BACKOFF, _backoff_message(failures, policy, told))
    else:
        pause = min(settings.retry_most_seconds, settings.retry_seconds * 2 ** min(max(failures - 1, 0), 20))
        draft.move(Phase.RETRYING)
        draft.set(next_attempt_time=draft.now + timedelta(seconds=pause))
        draft.event("Warning", "AttemptFailed", f"{told} The next attempt begins in {pause:.0f} s.")
        draft.look_again(pause)


def _attempt_failed(status: JobStatus, failure: Failure) -> str:
    return f"Attempt {status.attempts} failed. {failure.reason}: {failure.message}"


def _backoff_message(failures: int, policy: RunPolicy, told: str) -> str:
    return f"{failures} attempts failed, spec.runPolicy.backoffLimit allows {policy.backoff_limit} retries. {told}"


def fail(draft: Draft, reason: str, message: str) -> None:
    """The job is over and failed, now or, if only the reason is new, at the time that it has."""
    pause_clock(draft)
    draft.move(Phase.FAILED)
    draft.set(completion_time=draft.job.status.completion_time or draft.now, next_attempt_time=None)
    draft.condition(_C.CLUSTER_READY, "False", "Finished")
    draft.condition(_C.SUCCEEDED, "False", reason, message)
    draft.condition(_C.FAILED, "True", reason, message)
    draft.event("Warning", "Failed", f"{reason}: {message}")
    draft.look_again(0)


def late_failure(draft: Draft) -> Failure | None:
    """A failure of the latest attempt that was reported after the attempt was closed for another reason."""
    failure = reported_failure(draft.job.status)
    return failure if failure != draft.job.status.last_failure else None


def take_late_failure(draft: Draft, failure: Failure) -> bool:
    """Replace the reason for which an attempt was closed; whether that ends the job, which was about to try again."""
    draft.set(last_failure=failure)
    if not failure.retryable:
        fail(draft, failure.reason, failure.message)
        return True
    draft.condition(_C.CLUSTER_READY, "False", failure.reason, failure.message)
    draft.event("Warning", "AttemptFailed", _attempt_failed(draft.job.status, failure))
    return False


def complete_failure(draft: Draft, policy: RunPolicy) -> None:
    """Write what was reported after a job failed: how far it had come, and why it failed."""
    tell_reached(draft)
    status, failure = draft.job.status, late_failure(draft)
    reason = next((c.reason for c in status.conditions if c.type is _C.FAILED), "")
    if failure is None or reason == DEADLINE:  # to stop at a deadline is no failure of the trainer's
        return
    draft.set(last_failure=failure)
    if failure.retryable and reason == _BACKOFF:
        fail(draft, reason, _backoff_message(status.failures, policy, _attempt_failed(status, failure)))
    else:
        fail(draft, failure.reason, failure.message)


def pause_clock(draft: Draft) -> None:
    """Stop counting the running time, until the next attempt runs."""
    status = draft.job.status
    if status.active_since:
        draft.set(active_since=None, active_seconds=active_seconds(draft))


def active_seconds(draft: Draft) -> int:
    """The running time over all attempts, seconds."""
    status = draft.job.status
    running = (draft.now - status.active_since).total_seconds() if status.active_since else 0
    return status.active_seconds + max(0, int(running))
