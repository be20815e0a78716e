"""Disruptions of pods: node drains, evictions, preemption by the scheduler, taints. Pure.

Kubernetes marks such pods with the condition DisruptionTarget before it deletes them. The status keeps the disruption,
because the pod may be gone when its attempt ends.
"""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth_api.status import Failure
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.observed_pods import Pod


def find_disruption(builder: DecisionBuilder, pods: Sequence[Pod]) -> str | None:
    """The first disruption of the open attempt, which is recorded."""
    if recorded := builder.status.disruption:
        return recorded
    pod = next((pod for pod in pods if pod.disruption), None)
    if pod is None:
        return None
    node = f" on node {pod.node}" if pod.node else ""
    disruption = f"Pod {pod.name}{node} was disrupted: {pod.disruption.rstrip('.')}."
    builder.set_fields(disruption=disruption)
    builder.record_event("Warning", "PodDisrupted", disruption)
    return disruption


def with_disruption(failure: Failure, disruption: str | None) -> Failure:
    """`failure` with the disruption that explains why it does not count, if it can be retried."""
    if disruption is None or not failure.retryable:
        return failure
    message = f"{failure.message} {disruption} This does not count toward spec.runPolicy.backoffLimit."
    return failure.model_copy(update={"message": message})
