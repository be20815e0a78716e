"""Children of a finished job: they are kept for an hour, so that users can inspect them, and then deleted. Pure.

KubeRay deletes the pods as soon as the trainer ends. The ServiceAccount stays until the job is deleted.
"""

from __future__ import annotations

from dreambooth_operator.controller.actions import Delete
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.names import attempt_name
from dreambooth_operator.controller.observed import Observed
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, Key

_KEEP_SECONDS = 3600


def remove_children(builder: DecisionBuilder, observed: Observed) -> None:
    """Delete the RayJob, with its ConfigMap, and the NetworkPolicy. status.rayJobName is removed once that is done."""
    status, completed = builder.status, builder.status.completion_time
    if status.ray_job_name is None or completed is None:
        return
    left_seconds = _KEEP_SECONDS - (builder.now - completed).total_seconds()
    if left_seconds > 0:
        builder.requeue_after(left_seconds)
        return
    if observed.ray_jobs:  # the NetworkPolicy is needed until the pods are gone
        builder.delete_ray_jobs(ray_job for ray_job in observed.ray_jobs if ray_job.ended)
        return
    remove_network_policy(builder)
    builder.set_fields(ray_job_name=None, ray_job_uid=None, head_pod=None, ray_cluster=None)


def remove_network_policy(builder: DecisionBuilder) -> None:
    """Delete the NetworkPolicy of the latest attempt, whose pods are gone. The status write records that."""
    name = attempt_name(builder.job, builder.status.attempts)
    builder.add_before_write(Delete(NETWORK_POLICIES, Key(builder.job.key.namespace, name), ""))
