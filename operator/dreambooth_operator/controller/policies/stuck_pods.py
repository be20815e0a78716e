"""Pods that do not end, usually because their node is dead. Pure.

Kubernetes keeps such a pod until its kubelet confirms that it has ended. Until then neither the next attempt nor the
deletion of data starts, because the pod may still write to the job's output.
"""

from __future__ import annotations

from dreambooth_api.status import TERMINAL, ConditionType, summarize
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.lifecycle import OPEN
from dreambooth_operator.controller.observed import Observed

_GRACE_SECONDS = 120  # after the pod's own grace period


def report_stuck_pod(builder: DecisionBuilder, observed: Observed) -> None:
    """If a job without an open attempt waits for a pod that does not end, replace its message by the remedy."""
    if not observed.ray_jobs or (not builder.job.deleted and builder.status.phase in OPEN | TERMINAL):
        return
    ending = [(pod.ends, pod) for pod in observed.pods if pod.ends]
    if not ending:
        return
    ends, pod = min(ending, key=lambda each: each[0])
    late_seconds = (builder.now - ends).total_seconds()
    if late_seconds < _GRACE_SECONDS:
        builder.requeue_after(_GRACE_SECONDS - late_seconds)
        return
    node = pod.node or "unknown"
    message = (
        f"Pod {pod.name} on node {node} should have ended at {ends:%Y-%m-%dT%H:%M:%SZ} and still exists. The job waits "
        f"for it. Check the node. If it is shut down for good, run kubectl taint nodes {node} "
        "node.kubernetes.io/out-of-service=nodeshutdown:NoExecute, or delete the node."
    )
    old = builder.condition(ConditionType.CLUSTER_READY)
    if old is None or old.message != message:
        builder.record_event("Warning", "PodStuck", message)
    builder.set_condition(ConditionType.CLUSTER_READY, "False", "PodStuck", message)
    builder.set_fields(message=summarize(message))
