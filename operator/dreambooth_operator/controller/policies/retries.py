"""`spec.runPolicy.backoffLimit`: retries after failed attempts, with exponential backoff. Pure."""

from __future__ import annotations

from datetime import timedelta

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import Failure, JobStatus, Phase
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.failures import QUOTA_EXCEEDED
from dreambooth_operator.controller.observed import Observed
from dreambooth_operator.controller.settings import Settings

BACKOFF_LIMIT_EXCEEDED = "BackoffLimitExceeded"
# The same for each try, so that the count of one event grows: thousands of jobs may wait for a quota.
_QUOTA_EVENT = (
    f"{QUOTA_EXCEEDED}: a ResourceQuota is full. status.message says which, and when the next attempt starts."
)


def retry_delay_seconds(failures: int, settings: Settings) -> float:
    """Delay before the attempt that follows this number of failures."""
    return min(settings.max_retry_seconds, settings.retry_seconds * 2 ** min(max(failures - 1, 0), 20))


def schedule_retry(builder: DecisionBuilder, failure: Failure, failures: int, settings: Settings) -> None:
    """Let the next attempt start after the backoff."""
    seconds = retry_delay_seconds(failures, settings)
    if failure.reason == QUOTA_EXCEEDED:
        seconds = max(seconds, min(settings.max_retry_seconds, _waited_seconds(builder)))
    due, cause = builder.now + timedelta(seconds=seconds), failed_attempt(builder.status, failure)
    builder.set_phase(Phase.RETRYING, f"{cause} The next attempt starts at {due:%Y-%m-%dT%H:%M:%SZ}.")
    builder.set_fields(next_attempt_time=due)
    event = f"{cause} The next attempt starts in {seconds:.0f} s."
    builder.record_event("Warning", "AttemptFailed", _QUOTA_EVENT if failure.reason == QUOTA_EXCEEDED else event)
    builder.requeue_after(seconds)


def _waited_seconds(builder: DecisionBuilder) -> float:
    """How long the job has waited. As a delay it doubles the time waited, without a count of the attempts."""
    return (builder.now - (builder.status.waiting_since or builder.now)).total_seconds()


def replace_failure(builder: DecisionBuilder, failure: Failure) -> None:
    """Record another cause of the failed attempt, which is retried as scheduled."""
    cause = failed_attempt(builder.status, failure)
    builder.set_phase(Phase.RETRYING, cause)
    builder.record_event("Warning", "AttemptFailed", cause)


def wait_for_retry(builder: DecisionBuilder, observed: Observed) -> bool:
    """Whether the backoff has not passed yet.

    Finished RayJobs are kept until then, so that users can inspect them.
    """
    due = builder.status.next_attempt_time
    if builder.status.phase is not Phase.RETRYING or due is None or builder.now >= due:
        return False
    builder.requeue_after((due - builder.now).total_seconds())
    builder.delete_ray_jobs(r for r in observed.ray_jobs if not r.ended)
    return True


def failed_attempt(status: JobStatus, failure: Failure) -> str:
    """The sentence that describes the failure of the latest attempt."""
    sentence = f"Attempt {status.attempts} failed with {failure.reason}: {failure.message.rstrip()}"
    return sentence if sentence.endswith((".", "!", "?")) else f"{sentence}."


def limit_exceeded(status: JobStatus, failure: Failure, failures: int, policy: RunPolicy) -> str:
    """The message of a job that failed because it has no retries left."""
    counts = f"spec.runPolicy.backoffLimit is {policy.backoff_limit}, failed attempts: {failures}"
    return f"{failed_attempt(status, failure)} No retries are left ({counts})."
