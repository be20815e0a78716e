"""Detection of out-of-memory errors of PyTorch, Python and Ray, without importing PyTorch or Ray."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cluster.oom_kills import oom_kills

_TRAINING_SETTINGS = (
    "set training.gradientCheckpointing: true, decrease training.globalBatchSize or training.resolution, set "
    "training.method: LoRA, increase cluster.workers"
)
_HOST_REMEDY = (
    "use workers with more memory (on a cluster, increase spec.cluster.resources.memory, or pods.worker.memory in the "
    "runtime)"
)
_RAY_KILL = re.compile(r"was (\S+) used / (\S+) limit")
_LOST_PROCESS = {"RayActorError", "ActorDiedError", "WorkerCrashedError"}


class InsufficientMemoryError(UserError):
    """A worker ran out of memory. Another attempt of the same job would fail in the same way."""


def out_of_memory(
    error: BaseException, activity: str, *, kills_before: int | None = None
) -> InsufficientMemoryError | None:
    """Convert an out-of-memory error of PyTorch, Python, Ray or the kernel; None for any other error.

    Args:
        activity: what the worker was doing, for example "training".
        kills_before: an earlier `oom_kills()`, to find out whether the kernel killed a lost process of this container.
    """
    for inner in _inner_errors(error):
        if rule := _gpu_limit(inner, activity):
            return _insufficient(rule, f"{_settings(activity)}, or use GPUs with more memory")
        if rule := _host_limit(inner, activity) or _kernel_kill(inner, activity, kills_before):
            remedy = f"{_HOST_REMEDY}, or with workers on CPUs, {_settings(activity)}"
            return _insufficient(rule, remedy)
    return None


def _insufficient(rule: str, remedy: str) -> InsufficientMemoryError:
    return InsufficientMemoryError(ValidationIssue("spec.cluster.resources", None, rule, remedy))


def _settings(activity: str) -> str:
    return _TRAINING_SETTINGS if activity == "training" else "decrease training.resolution"


def _gpu_limit(error: BaseException, activity: str) -> str | None:
    # Both ray.exceptions and torch have a class of this name.
    if type(error).__name__ != "OutOfMemoryError" or _RAY_KILL.search(str(error)):
        return None
    first_line = str(error).partition("\n")[0]
    return f"the GPU ran out of memory during {activity}: {first_line}"


def _host_limit(error: BaseException, activity: str) -> str | None:
    text = str(error)
    if type(error).__name__ == "OutOfMemoryError" and (used := _RAY_KILL.search(text)):
        return f"Ray killed a worker during {activity}: {used[1]} of the node's {used[2]} of memory were in use"
    if isinstance(error, RuntimeError) and (size := re.search(r"can't allocate memory: .* allocate (\d+) bytes", text)):
        return f"a worker could not allocate {int(size[1]) / 2**30:.2f} GiB during {activity}"
    if isinstance(error, MemoryError):
        first_line = text.partition("\n")[0]
        return f"a worker could not allocate memory during {activity}{first_line and ': '}{first_line}"
    return None


def _kernel_kill(error: BaseException, activity: str, kills_before: int | None) -> str | None:
    if kills_before is None or type(error).__name__ not in _LOST_PROCESS or oom_kills() <= kills_before:
        return None
    return f"the kernel killed a process during {activity}, because the machine or the container ran out of memory"


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
