"""Detection of out-of-memory errors of PyTorch, Python and Ray, without importing PyTorch or Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dreambooth_api.errors import UserError, ValidationIssue


class InsufficientMemoryError(UserError):
    """A worker ran out of memory. Another attempt of the same job would fail in the same way."""


def out_of_memory(error: BaseException, activity: str) -> InsufficientMemoryError | None:
    """Convert an out-of-memory error of PyTorch, Python or Ray; None for any other error.

    Args:
        activity: what the worker was doing, for example "training".
    """
    rule = next((rule for inner in _inner_errors(error) if (rule := _broken_limit(inner, activity))), None)
    if rule is None:
        return None
    remedy = (
        "set training.gradientCheckpointing: true, decrease training.globalBatchSize or training.resolution, "
        "set training.method: LoRA, increase cluster.workers, or use workers with more memory"
    )
    return InsufficientMemoryError(ValidationIssue("spec.cluster.resources", None, rule, remedy))


def _broken_limit(error: BaseException, activity: str) -> str | None:
    text = str(error)
    first_line = text.partition("\n")[0]
    if type(error).__name__ == "OutOfMemoryError":  # both ray.exceptions and torch have a class of this name
        if used := re.search(r"was (\S+) used / (\S+) limit", text):
            return f"Ray killed a worker during {activity}: {used[1]} of the node's {used[2]} of memory were in use"
        return f"the GPU ran out of memory during {activity}: {first_line}"
    if isinstance(error, RuntimeError) and (size := re.search(r"can't allocate memory: .* allocate (\d+) bytes", text)):
        return f"a worker could not allocate {int(size[1]) / 2**30:.2f} GiB during {activity}"
    if isinstance(error, MemoryError):
        return f"a worker could not allocate memory during {activity}{first_line and ': '}{first_line}"
    return None


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
