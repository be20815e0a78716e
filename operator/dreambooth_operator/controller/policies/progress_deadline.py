"""`spec.runPolicy.progressDeadlineSeconds`: closes the attempt of a trainer that does not report progress. Pure.

The trainer reports its phases, its training steps and that a phase progresses, at an interval of at most a third of the
deadline (see `statusserver.budget`).
"""

from __future__ import annotations

from datetime import datetime

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.failures import report_of_attempt


def progress_deadline_exceeded(
    builder: DecisionBuilder, policy: RunPolicy, reports_since: datetime | None
) -> Failure | None:
    """A failure if a running trainer has not reported for too long. Otherwise the job is reconciled again when it has.

    `reports_since` is when this operator began to receive reports or to lead, or when the API server was last
    unavailable or last failed to store a status of the job. Time before it does not count, because reports may have
    been lost.
    """
    report, limit_seconds = report_of_attempt(builder.status), policy.progress_deadline_seconds
    reported = report.time if report else None
    times = (builder.status.active_since or builder.now, reports_since, reported)
    silent_seconds = (builder.now - max(time for time in times if time)).total_seconds()
    if silent_seconds < limit_seconds:
        builder.requeue_after(limit_seconds - silent_seconds)
        return None
    if report and reported:
        last = f"Its last report, of phase {report.phase}, arrived at {reported:%Y-%m-%dT%H:%M:%SZ}."
    else:
        last = "It has never reported in this attempt: check that its pods reach the operator's progress endpoint."
    message = (
        f"The trainer has not reported progress for {silent_seconds:.0f} s; the limit set by "
        f"spec.runPolicy.progressDeadlineSeconds is {limit_seconds} s. {last}"
    )
    return Failure(reason="ProgressDeadlineExceeded", message=message)
