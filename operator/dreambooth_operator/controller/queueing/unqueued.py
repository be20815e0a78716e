"""Jobs without a queue. Their RayJob starts at once, but a user may suspend and resume it."""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_operator.controller.observed import RayJob


def is_active(ray_job: RayJob) -> bool:
    """Whether a RayJob is neither suspended nor being suspended."""
    return not ray_job.suspended and ray_job.deployment not in ("Suspending", "Suspended")


@dataclass(frozen=True, slots=True)
class Unqueued:
    """The queue of a job without `spec.runPolicy.queueName`."""

    @property
    def starts_suspended(self) -> bool:
        """The RayJob needs no admission."""
        return False

    @property
    def labels(self) -> dict[str, str]:
        """None are needed."""
        return {}

    @property
    def annotations(self) -> dict[str, str]:
        """None are needed."""
        return {}

    def is_admitted(self, ray_job: RayJob) -> bool:
        """Whether the RayJob has not been suspended by a user."""
        return is_active(ray_job)

    def waiting_message(self, ray_job_name: str) -> str:
        """What a suspended RayJob waits for."""
        return (
            f"Waiting for RayJob {ray_job_name} to be resumed. If Kueue manages jobs without a queue name here, set "
            "spec.runPolicy.queueName."
        )
