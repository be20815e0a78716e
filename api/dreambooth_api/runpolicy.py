"""How a job runs and ends: `spec.runPolicy`."""

from __future__ import annotations

from pydantic import Field

from dreambooth_api.fields import ObjectName, Strict


class RunPolicy(Strict):
    """Suspension, retries, deadline, cleanup and queueing."""

    suspend: bool = Field(
        default=False,
        description="Whether to suspend the job. Suspending deletes its pods; setting false resumes from the last "
        "checkpoint.",
    )
    backoff_limit: int = Field(
        default=3,
        ge=0,
        le=100,
        description="Number of retries after retryable failures before the job is marked as failed.",
    )
    active_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Maximum running time in seconds, summed over all attempts, before the job is marked as failed. "
        "Time in which the job waits for a queue or for its pods does not count.",
    )
    start_deadline_seconds: int | None = Field(
        default=None,
        ge=1,
        description="Maximum time in seconds that the job waits without a running trainer, in a queue or for its pods, "
        "before the job is marked as failed.",
    )
    progress_deadline_seconds: int = Field(
        default=1800,
        ge=300,
        description="Maximum time in seconds that a running trainer may take without reporting progress. Then the "
        "attempt counts as failed and is retried.",
    )
    ttl_seconds_after_finished: int | None = Field(
        default=None, ge=0, description="Seconds from completion until the job is deleted."
    )
    queue_name: ObjectName | None = Field(default=None, description="Name of the Kueue LocalQueue that admits the job.")
    priority_class_name: ObjectName | None = Field(
        default=None, description="Name of the PriorityClass of the job's pods."
    )
    workload_priority_class_name: ObjectName | None = Field(
        default=None,
        description="Name of the WorkloadPriorityClass by which Kueue orders and preempts the job. Defaults to the "
        "priority of the pods.",
    )
