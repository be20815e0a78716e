"""Errors in user input, reported all at once and with a remedy, and transient errors.

There are three kinds of failures. `UserError`: a retry cannot succeed, exit code 2. `TransientError`: the environment
failed, a retry may succeed. Any other exception is a bug.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class ValidationIssue:
    """One invalid value: its path, the value, the violated rule and the remedy.

    `source` is the file and line, or the option, that the value comes from, if known.
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
    """All issues of one input. The message has one line per issue."""

    def __init__(self, issues: Sequence[ValidationIssue] | ValidationIssue) -> None:
        self.issues: tuple[ValidationIssue, ...] = (issues,) if isinstance(issues, ValidationIssue) else tuple(issues)
        super().__init__("\n".join(str(issue) for issue in self.issues))

    def __reduce__(self) -> tuple[type[UserError], tuple[tuple[ValidationIssue, ...]]]:
        # Ray pickles the error from a worker to the driver; by default it would be rebuilt from its message.
        return type(self), (self.issues,)


class ThresholdError(UserError):
    """The trained model scores below the job's thresholds."""


class TransientError(Exception):
    """A temporary failure of the environment, for example of a node, a disk or the network."""


def _short(value: object, max_length: int = 80) -> str:
    text = repr(value)
    return text if len(text) <= max_length else text[: max_length - 1] + "…"
