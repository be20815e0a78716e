"""Classification of a failed attempt: what its RayJob and its trainer's report say about the cause. Pure."""

from __future__ import annotations

import re

from dreambooth_api.environment import BELOW_THRESHOLDS, INVALID_INPUT, OUT_OF_MEMORY, ExitCode
from dreambooth_api.status import Failure, JobStatus, Report
from dreambooth_operator.controller.observed import RayJob

# Exit codes of the trainer after which a retry cannot succeed.
_USER_EXITS: dict[int, tuple[str, str]] = {
    ExitCode.INVALID_INPUT: (INVALID_INPUT, "The trainer rejected the job."),
    ExitCode.BELOW_THRESHOLDS: (
        BELOW_THRESHOLDS,
        "The model scores below spec.evaluation.thresholds and was not published.",
    ),
}
QUOTA_EXCEEDED = "QuotaExceeded"
_EXIT_CODE = re.compile(r"exit code (\d+)")


def classify_failure(ray_job: RayJob, status: JobStatus) -> Failure | None:
    """Why a finished RayJob failed; None if it succeeded.

    The failure that the trainer reported takes precedence. Otherwise the exit code decides, which Ray includes in its
    message.
    """
    if ray_job.job == "SUCCEEDED":
        return None
    if failure := reported_failure(status):
        return failure
    if ray_job.deployment == "ValidationFailed":
        message = f"KubeRay rejected the RayJob: {ray_job.message}"
        return Failure(reason="RayJobRefused", message=message, retryable=False)
    exit_code = _EXIT_CODE.search(ray_job.message)
    if exit_code and (user := _USER_EXITS.get(int(exit_code[1]))):
        reason, message = user
        return Failure(reason=reason, message=f"{message} {ray_job.message}".strip(), retryable=False)
    if ray_job.job == "STOPPED":
        return Failure(reason="Stopped", message="The Ray job was stopped by a user.")
    return Failure(reason=ray_job.reason or "AppFailed", message=ray_job.message or "The Ray job failed.")


def report_of_attempt(status: JobStatus) -> Report | None:
    """The last report of the latest attempt; None if it has not reported yet."""
    return status.report if status.report and status.report.attempt == status.attempts else None


def reported_failure(status: JobStatus) -> Failure | None:
    """The failure that the trainer of the latest attempt has reported."""
    report = report_of_attempt(status)
    return report.failure if report else None


def closest_failure(status: JobStatus, observed: Failure) -> Failure:
    """The failure that is closer to the cause: the reported or the observed one.

    A trainer knows the cause, except that a lost process is all it sees of a container that was killed for memory.
    """
    reported = reported_failure(status)
    lost_process = reported is not None and reported.retryable and _is_out_of_memory(observed)
    return observed if reported is None or lost_process else reported


def late_failure(status: JobStatus) -> Failure | None:
    """A failure of the latest attempt that was reported after the attempt was closed for another reason."""
    last = status.last_failure
    failure = closest_failure(status, last) if last else reported_failure(status)
    return failure if failure != last else None


def _is_out_of_memory(failure: Failure) -> bool:
    return failure.reason == OUT_OF_MEMORY and not failure.retryable


def rejected_child(kind: str, status: int, error: str) -> Failure:
    """Why the API server has rejected a child, from its response.

    An invalid child stays invalid; one that is forbidden, for example by a quota, can succeed later.
    """
    message = f"The API server rejected the {kind}: {error}"
    if status == 403 and "exceeded quota" in error:
        remedy = "The job waits until the ResourceQuota has room, and continues automatically."
        return Failure(reason=QUOTA_EXCEEDED, message=f"{message}. {remedy}")
    return Failure(reason=f"{kind}Refused", message=message, retryable=status == 403)
