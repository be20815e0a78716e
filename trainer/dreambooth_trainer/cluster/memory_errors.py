"""Detection of out-of-memory errors of PyTorch and Ray, without importing either."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dreambooth_api.errors import UserError, ValidationIssue


class InsufficientMemoryError(UserError):
    """A worker ran out of memory. Another attempt of the same job would fail in the same way."""


def out_of_memory(error: BaseException, activity: str) -> InsufficientMemoryError | None:
    """Convert an out-of-memory error of PyTorch or Ray; None for any other error.

    Args:
        activity: what the worker was doing, for example "training".
    """
    # Both ray.exceptions and torch have a class of this name.
    cause = next((inner for inner in _inner_errors(error) if type(inner).__name__ == "OutOfMemoryError"), None)
    if cause is None:
        return None
    used = re.search(r"was (\S+) used / (\S+) limit", str(cause))
    if used:
        rule = f"Ray killed a worker during {activity}: {used[1]} of {used[2]} on its machine were in use"
    else:
        rule = f"the GPU ran out of memory during {activity}: {str(cause).partition(chr(10))[0]}"
    remedy = (
        "set training.gradientCheckpointing: true, decrease training.globalBatchSize or training.resolution, "
        "set training.method: LoRA, increase cluster.workers, or use workers with more memory"
    )
    return InsufficientMemoryError(ValidationIssue("spec.cluster.resources", None, rule, remedy))


def _inner_errors(error: BaseException) -> Iterator[BaseException]:
    """An error and all errors that Ray, Ray Train and Python wrap in it, each once."""
    pending: list[object] = [error]
    seen: set[int] = set()
    while pending:
        inner = pending.pop()
        if isinstance(inner, Mapping):
            pending += inner.values()
        elif isinstance(inner, BaseException) and id(inner) not in seen:
            seen.add(id(inner))
            yield inner
            names = ("cause", "health_check_failure", "controller_failure", "worker_failures", "__cause__")
            pending += (getattr(inner, name, None) for name in names)
