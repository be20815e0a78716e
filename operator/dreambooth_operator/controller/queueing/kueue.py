"""Kueue: `spec.runPolicy.queueName` names a LocalQueue.

Kueue finds the RayJob by its label. It admits the RayJob by clearing `spec.suspend` and preempts it by setting
`spec.suspend` again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_operator.controller.observed import RayJob
from dreambooth_operator.controller.queueing.unqueued import is_active

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"


@dataclass(frozen=True, slots=True)
class KueueQueue:
    """A LocalQueue of Kueue."""

    name: str

    @property
    def starts_suspended(self) -> bool:
        """Kueue admits only RayJobs that are created suspended."""
        return True

    @property
    def labels(self) -> dict[str, str]:
        """The label by which Kueue finds the RayJob."""
        return {QUEUE_LABEL: self.name}

    @property
    def annotations(self) -> dict[str, str]:
        """Kueue needs none."""
        return {}

    def is_admitted(self, ray_job: RayJob) -> bool:
        """Whether Kueue has cleared `spec.suspend` and KubeRay has followed."""
        return is_active(ray_job)

    def waiting_message(self, ray_job_name: str) -> str:
        """What a RayJob that is not admitted waits for."""
        return f"Waiting for admission by queue {self.name}."
