"""`spec.runPolicy.ttlSecondsAfterFinished`: automatic deletion of a finished job. Pure."""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_operator.controller.actions import DeleteJob
from dreambooth_operator.controller.builder import DecisionBuilder


def apply_ttl(builder: DecisionBuilder, policy: RunPolicy) -> None:
    """Delete a finished job whose TTL has expired. Otherwise reconcile it again when it expires."""
    ttl_seconds, completed = policy.ttl_seconds_after_finished, builder.status.completion_time
    if ttl_seconds is None or completed is None:
        return
    left_seconds = ttl_seconds - (builder.now - completed).total_seconds()
    if left_seconds <= 0:
        builder.add(DeleteJob())
    else:
        builder.requeue_after(left_seconds)
