"""Recognizes a lack of memory in the errors of PyTorch and Ray, without importing either."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dreambooth_api.errors import UserError, ValidationIssue


class InsufficientMemoryError(UserError):
    """A worker does not have the memory that the job needs; the same again would end the same."""


def out_of_memory(error: BaseException, activity: str) -> InsufficientMemoryError | None:
    """One sentence for an error of PyTorch or Ray that means a lack of memory; None for any other error.

    Args:
        activity: what the worker was doing.
    """
    found = next((one for one in _inner_errors(error) if type(one).__name__ == "OutOfMemoryError"), None)
    if found is None:  # ray.exceptions has one, torch has one
        return None
    used = re.search(r"was (\S+) used / (\S+) limit", str(found))
    if used:
        rule = f"Ray killed a worker that was {activity}: {used[1]} of {used[2]} on its machine were in use"
    else:
        rule = f"the GPU's memory was exhausted by {activity}: {str(found).partition(chr(10))[0]}"
    remedy = (
        "write training.gradientCheckpointing: true, a smaller training.globalBatchSize or training.resolution, "
        "training.method: LoRA, more cluster.workers, or use workers with more memory"
    )
    return InsufficientMemoryError(ValidationIssue("spec.cluster.resources", None, rule, remedy))


def _inner_errors(error: BaseException) -> Iterator[BaseException]:
    """An error and those that Ray, Ray Train and Python keep inside it, each once."""
    waiting: list[object] = [error]
    seen: set[int] = set()
    while waiting:
        inner = waiting.pop()
        if isinstance(inner, Mapping):
            waiting += inner.values()
        elif isinstance(inner, BaseException) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            names = ("cause", "health_check_failure", "controller_failure", "worker_failures", "__cause__")
            waiting += (getattr(inner, name, None) for name in names)
