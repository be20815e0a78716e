"""Errors whose cause is what the user gave, told all at once and with what to write instead.

Three kinds of failure exist. `UserError`: retrying cannot help, exit code 2. `TransientError`: the
world was at fault, a retry may help. Anything else is a bug of ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ValidationIssue:
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
        issues: one or more; the message has a line for each.
    """

    def __init__(self, issues: Sequence[ValidationIssue] | ValidationIssue) -> None:
        self.issues: tuple[ValidationIssue, ...] = (issues,) if isinstance(issues, ValidationIssue) else tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[ValidationIssue, ...]]]:
        # Ray carries it from a worker to the driver; the default would rebuild it from the message.
        return type(self), (self.issues,)


class ThresholdError(UserError):
    """The model was trained, but scores below the job's thresholds."""


class TransientError(Exception):
    """The world failed in a way that may pass: a node, a disk, the network."""


def _short(value: object, most: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= most else text[: most - 1] + "…"
