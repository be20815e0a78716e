"""Containers that the kernel killed for lack of memory: the next attempt would end in the same way. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth_api.environment import OUT_OF_MEMORY
from dreambooth_api.status import Failure
from dreambooth_operator.controller.observed_pods import Pod

_HEAD_REMEDY = "Increase pods.head.memory in the runtime"
_WORKER_REMEDY = "Increase spec.cluster.resources.memory, or pods.worker.memory in the runtime"


def killed_for_memory(pods: Sequence[Pod]) -> Failure | None:
    """A failure if a pod of an attempt exceeded its memory limit."""
    pod = next((pod for pod in pods if pod.out_of_memory), None)
    if pod is None:
        return None
    message = (
        f"Pod {pod.name}: the kernel killed {pod.out_of_memory}. {_HEAD_REMEDY if pod.head else _WORKER_REMEDY}, and "
        "create the job again."
    )
    return Failure(reason=OUT_OF_MEMORY, message=message, retryable=False)
