"""The states of a job and the legal ways between them; nothing else knows them.

An attempt is open in `OPEN` states: its RayJob exists or is about to. `begun` and `closed` in `decide`
are the only ways in and out.
"""

from __future__ import annotations

from dreambooth_operator.api.status import Phase

_P = Phase

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # The first attempt begins, or the job cannot start as it is, or must not yet.
    _P.PENDING: frozenset({_P.STARTING, _P.QUEUED, _P.REJECTED, _P.SUSPENDED, _P.ERASING}),
    _P.REJECTED: frozenset({_P.STARTING, _P.QUEUED, _P.SUSPENDED, _P.PENDING, _P.ERASING}),
    # An attempt is open.
    _P.QUEUED: frozenset({_P.STARTING, _P.RUNNING, _P.SUSPENDING, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING}),
    _P.STARTING: frozenset({_P.QUEUED, _P.RUNNING, _P.SUSPENDING, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING}),
    _P.RUNNING: frozenset({_P.QUEUED, _P.STARTING, _P.SUSPENDING, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING}),
    # No attempt is open, the next one will be.
    _P.RETRYING: frozenset({_P.STARTING, _P.QUEUED, _P.REJECTED, _P.SUSPENDING, _P.SUSPENDED, _P.FAILED, _P.ERASING}),
    _P.SUSPENDING: frozenset({_P.SUSPENDED, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING}),
    _P.SUSPENDED: frozenset({_P.STARTING, _P.QUEUED, _P.REJECTED, _P.ERASING}),
    # The end.
    _P.SUCCEEDED: frozenset({_P.ERASING}),
    _P.FAILED: frozenset({_P.ERASING}),
    _P.ERASING: frozenset(),
}

OPEN = frozenset({_P.QUEUED, _P.STARTING, _P.RUNNING})


def check_transition(before: Phase, after: Phase) -> None:
    """Raise ValueError if a job may not go from `before` to `after`; staying is always legal."""
    if after != before and after not in TRANSITIONS[before]:
        raise ValueError(f"a job cannot go from {before} to {after}; legal: {sorted(TRANSITIONS[before])}")
