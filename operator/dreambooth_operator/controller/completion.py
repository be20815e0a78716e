"""How attempts and jobs end: closing a failed attempt, finishing a job, and reports that arrive afterwards. Pure."""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import ConditionType, Failure, Phase
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.failures import closest_failure, late_failure
from dreambooth_operator.controller.policies import deadline, retries, start_deadline
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.controller.status import set_completed_conditions, set_success_conditions

_C = ConditionType


def close_attempt(
    builder: DecisionBuilder, failure: Failure, policy: RunPolicy, settings: Settings, *, counts: bool = True
) -> None:
    """Close the open attempt, which did not succeed. `counts`: whether the failure counts toward backoffLimit.

    A failure that the trainer reports, now or later, replaces `failure` if it is closer to the cause.
    """
    status = builder.status
    failure = closest_failure(status, failure)
    deadline.pause_clock(builder)
    failures = status.failures + (1 if counts else 0)
    builder.set_fields(failures=failures, last_failure=failure, head_lost_since=None)
    builder.set_condition(_C.CLUSTER_READY, "False", failure.reason, failure.message)
    if not failure.retryable:
        fail_job(builder, failure.reason, failure.message)
    elif failures > policy.backoff_limit and counts:
        fail_job(builder, retries.BACKOFF_LIMIT_EXCEEDED, retries.limit_exceeded(status, failure, failures, policy))
    else:
        retries.schedule_retry(builder, failure, failures, settings)


def fail_job(builder: DecisionBuilder, reason: str, message: str) -> None:
    """Finish the job as failed. For a job that has failed already, only the reason changes."""
    deadline.pause_clock(builder)
    start_deadline.stop_waiting(builder)
    builder.set_phase(Phase.FAILED, message)
    builder.set_fields(completion_time=builder.status.completion_time or builder.now, next_attempt_time=None)
    builder.set_condition(_C.CLUSTER_READY, "False", "Finished")
    builder.set_condition(_C.SUCCEEDED, "False", reason, message)
    builder.set_condition(_C.FAILED, "True", reason, message)
    builder.record_event("Warning", "Failed", f"{reason}: {message}")
    builder.requeue_after(0)


def succeed_job(builder: DecisionBuilder) -> None:
    """Finish the job as succeeded."""
    deadline.pause_clock(builder)
    start_deadline.stop_waiting(builder)
    message = set_success_conditions(builder)
    builder.set_phase(Phase.SUCCEEDED, message)
    builder.set_fields(completion_time=builder.now)
    builder.record_event("Normal", "Succeeded", message)
    builder.requeue_after(0)


def apply_late_failure(builder: DecisionBuilder, failure: Failure) -> bool:
    """Replace the failure of a closed attempt. Returns whether that finishes the job, which was about to retry."""
    builder.set_fields(last_failure=failure)
    if not failure.retryable:
        fail_job(builder, failure.reason, failure.message)
        return True
    builder.set_condition(_C.CLUSTER_READY, "False", failure.reason, failure.message)
    retries.replace_failure(builder, failure)
    return False


def update_failed_job(builder: DecisionBuilder, policy: RunPolicy) -> None:
    """Record what was reported after the job failed: its completed phases and its failure."""
    set_completed_conditions(builder)
    status, failure = builder.status, late_failure(builder.status)
    failed = builder.condition(_C.FAILED)
    reason = failed.reason if failed else ""
    # A trainer that is stopped at the deadline may report a failure.
    if failure is None or reason in (deadline.DEADLINE_EXCEEDED, start_deadline.START_DEADLINE_EXCEEDED):
        return
    builder.set_fields(last_failure=failure)
    if failure.retryable and reason == retries.BACKOFF_LIMIT_EXCEEDED:
        fail_job(builder, reason, retries.limit_exceeded(status, failure, status.failures, policy))
    else:
        fail_job(builder, failure.reason, failure.message)
