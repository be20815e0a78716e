"""Time limits for the pods of an attempt: `--pods-ready-seconds` and `--head-grace-seconds`. Pure."""

from __future__ import annotations

import hashlib

from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.observed import RayCluster
from dreambooth_operator.controller.status import pod_summary


def pods_ready_timeout(
    builder: DecisionBuilder, cluster: RayCluster | None, *, timeout_seconds: float
) -> Failure | None:
    """A failure if the pods of an attempt are not all ready in time. Call it before the trainer runs.

    Jobs that each hold some of the last free nodes would otherwise wait for each other forever. The timeout of each
    attempt is extended by up to its own length, by a hash of the attempt, so that such jobs do not all give up at the
    same time.
    """
    status = builder.status
    digest = hashlib.sha256(f"{builder.job.uid}/{status.attempts}".encode()).digest()
    extension = int.from_bytes(digest[:4]) / 2**32
    extended_seconds = round(timeout_seconds * (1 + extension))  # times in the status have whole seconds
    waited_seconds = (builder.now - (status.starting_since or builder.now)).total_seconds()
    if waited_seconds < extended_seconds:
        builder.requeue_after(extended_seconds - waited_seconds)
        return None
    pods = pod_summary(cluster) if cluster else "No Ray cluster was created."
    message = (
        f"Not all pods became ready within {waited_seconds:.0f} s. {pods} The pods are deleted so that other jobs can "
        "use their resources. This does not count toward spec.runPolicy.backoffLimit."
    )
    return Failure(reason="PodsNotReady", message=message)


def head_lost(
    builder: DecisionBuilder, cluster: RayCluster | None, *, running: bool, grace_seconds: float
) -> Failure | None:
    """A failure if the head pod of an attempt is gone, was replaced, or has not been ready for too long.

    KubeRay replaces a dead head pod and submits the trainer again, without limit. An attempt is bound to its first
    head pod instead: when that is lost, the next attempt resumes from the last checkpoint.
    """
    if cluster is None:
        return None
    status = builder.status
    head_pod, since = status.head_pod, status.head_lost_since
    if head_pod and status.ray_cluster != cluster.name:
        # KubeRay makes another cluster only after a suspension: a queue has preempted and admitted the RayJob.
        builder.set_fields(head_pod=None, ray_cluster=None, head_lost_since=None)
        head_pod = since = None
    if head_pod is None and not running:
        return None
    name = f"Head pod {head_pod}" if head_pod else "The head pod"
    if head_pod and (cluster.head_gone or (cluster.head and cluster.head != head_pod)):
        return Failure(reason="HeadLost", message=f"{name} was lost.")
    if not cluster.head_ready:  # also if it was lost before it was recorded: KubeRay does not replace it
        since = since or builder.now
        lost_seconds = (builder.now - since).total_seconds()
        if lost_seconds >= grace_seconds:
            return Failure(reason="HeadLost", message=f"{name} was not ready for {lost_seconds:.0f} s.")
        builder.set_fields(head_lost_since=since)
        builder.requeue_after(grace_seconds - lost_seconds)
        return None
    builder.set_fields(head_pod=head_pod or cluster.head or None, ray_cluster=cluster.name, head_lost_since=None)
    return None
