"""Kueue: `spec.runPolicy.queueName` names a LocalQueue.

Kueue finds the RayJob by its label. It admits the RayJob by clearing `spec.suspend` and preempts it by setting
`spec.suspend` again.
"""

from __future__ import annotations

from dataclasses import dataclass

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_operator.controller.observed import RayJob
from dreambooth_operator.controller.queueing.unqueued import is_active

QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
PRIORITY_LABEL = "kueue.x-k8s.io/priority-class"
ELASTIC_ANNOTATION = "kueue.x-k8s.io/elastic-job"


def kueue_labels(policy: RunPolicy) -> dict[str, str]:
    """Labels for Kueue besides the queue's. A cluster can have a default queue for RayJobs that name none."""
    priority_class = policy.workload_priority_class_name
    return {PRIORITY_LABEL: priority_class} if priority_class else {}


def kueue_annotations(*, elastic: bool) -> dict[str, str]:
    """Annotations for Kueue, which refuses a RayJob with an autoscaler unless it is marked as elastic.

    KubeRay copies the annotation to the RayCluster, whose pods Kueue then admits one by one.
    """
    return {ELASTIC_ANNOTATION: "true"} if elastic else {}


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
        """None of the queue: see kueue_annotations."""
        return {}

    def is_admitted(self, ray_job: RayJob) -> bool:
        """Whether Kueue has cleared `spec.suspend` and KubeRay has followed."""
        return is_active(ray_job)

    def waiting_message(self, ray_job_name: str) -> str:
        """What a RayJob that is not admitted waits for."""
        return f"Waiting for admission by queue {self.name}."
