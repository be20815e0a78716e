"""The states of a job and the legal ways between them; nothing else knows them.

An attempt is open in `OPEN` states: its RayJob exists or is about to. `decide._begin` is the only way in.
"""

from __future__ import annotations

from dreambooth_api.status import Phase

_P = Phase

_BEGIN = frozenset({_P.STARTING, _P.QUEUED})
# From here a job may not begin, or be made to wait.
_HALT = frozenset({_P.REJECTED, _P.SUSPENDED, _P.SUSPENDING, _P.ERASING})
_CLOSE = frozenset({_P.SUSPENDING, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING})

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # No attempt is open.
    _P.PENDING: _BEGIN | _HALT,
    _P.REJECTED: _BEGIN | _HALT,
    _P.RETRYING: _BEGIN | _HALT | {_P.FAILED},  # by a report that came after the attempt was closed
    _P.SUSPENDING: frozenset({_P.SUSPENDED, _P.ERASING}),
    _P.SUSPENDED: _BEGIN | _HALT,
    # An attempt is open. A queue may take back what it admitted, and a cluster may come up anew.
    _P.QUEUED: frozenset({_P.STARTING, _P.RUNNING}) | _CLOSE,
    _P.STARTING: frozenset({_P.QUEUED, _P.RUNNING}) | _CLOSE,
    _P.RUNNING: frozenset({_P.QUEUED, _P.STARTING}) | _CLOSE,
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
