"""Errors whose cause is what the user gave, told all at once and with what to write instead.

Three kinds of failure exist. `UserError`: retrying cannot help, exit code 2. `TransientError`: the
world was at fault, a retry may help. Anything else is a bug of ours.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: where, what was there, which rule it breaks, what to do instead.

    `source` says which file and line, or which option, the value came from, when that is known.
    """

    path: str
    value: object
    rule: str
    remedy: str
    source: str = ""

    def __str__(self) -> str:
        source = f" ({self.source})" if self.source else ""
        value = "" if self.value is None else f" {_short(self.value)}:"
        return f"{self.path}{source}:{value} {self.rule}; {self.remedy}"


class UserError(Exception):
    """Everything that is wrong with one input.

    Args:
        faults: one or more; the message has a line for each.
    """

    def __init__(self, faults: Sequence[Fault] | Fault) -> None:
        self.faults: tuple[Fault, ...] = (faults,) if isinstance(faults, Fault) else tuple(faults)
        super().__init__("\n".join(str(fault) for fault in self.faults))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[Fault, ...]]]:
        # Ray carries it from a worker to the driver; the default would rebuild it from the message.
        return type(self), (self.faults,)


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
        "write training.gradientCheckpointing: true, a smaller training.batchSize or training.resolution, "
        "training.method: LoRA, more cluster.workers, or use workers with more memory"
    )
    return InsufficientMemoryError(Fault("spec.cluster.resources", None, rule, remedy))


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


class ThresholdError(UserError):
    """The model was trained, but scores below the job's thresholds."""


class TransientError(Exception):
    """The world failed in a way that may pass: a node, a disk, the network."""


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
