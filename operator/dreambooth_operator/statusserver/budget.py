"""How often trainers report, so that the status writes of all jobs together stay within a budget. Pure.

Each replica counts the jobs that reported to it. A report goes to any replica, so each of them counts nearly all jobs,
and the budget is that of all replicas together.
"""

from __future__ import annotations

import math
from datetime import datetime

from dreambooth_api.progress import MAX_REPORT_SECONDS

# Each write is stored in etcd with the whole job, 5 to 10 KB, and is kept for five minutes.
WRITES_PER_SECOND = 50
MIN_SECONDS = 10.0
# A trainer leaves two seconds between two messages, except before its last one.
MILESTONE_SECONDS = 1.0
# A job counts as reporting for twice the longest interval.
COUNTED_SECONDS = 2 * MAX_REPORT_SECONDS
# One report may be lost and another one may not be written before the progress deadline passes.
_REPORTS_PER_DEADLINE = 3
# The interval grows with the number of jobs, so reports arrive earlier than the interval that holds on their arrival.
_TOLERANCE = 0.8


def report_interval_seconds(reporting_jobs: int, progress_deadline_seconds: float) -> int:
    """Seconds between two progress reports of a job, if `reporting_jobs` jobs report.

    The interval is shorter than the job's progress deadline, even if the writes exceed the budget.
    """
    longest = min(MAX_REPORT_SECONDS, progress_deadline_seconds / _REPORTS_PER_DEADLINE)
    return math.ceil(min(max(MIN_SECONDS, reporting_jobs / WRITES_PER_SECOND), longest))


def is_due(written: datetime | None, now: datetime, interval_seconds: float) -> bool:
    """Whether progress is written again, if it was last `written` then. Clocks of replicas may differ."""
    return written is None or not 0 <= (now - written).total_seconds() < _TOLERANCE * interval_seconds


def is_too_soon(written: datetime | None, now: datetime) -> bool:
    """Whether a milestone has to wait, if the job's last report was `written` then. Clocks of replicas may differ."""
    return written is not None and 0 <= (now - written).total_seconds() < MILESTONE_SECONDS
