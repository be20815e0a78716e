"""The phases of a job and the legal transitions between them. No other module knows which transitions are legal."""

from __future__ import annotations

from dreambooth_api.status import Phase

_P = Phase

_START = frozenset({_P.STARTING, _P.QUEUED})
# Transitions that do not start an attempt, from any phase without an open attempt.
_HOLD = frozenset({_P.REJECTED, _P.SUSPENDED, _P.SUSPENDING, _P.ERASING})
_CLOSE = frozenset({_P.SUSPENDING, _P.RETRYING, _P.SUCCEEDED, _P.FAILED, _P.ERASING})

TRANSITIONS: dict[Phase, frozenset[Phase]] = {
    # No attempt is open.
    _P.PENDING: _START | _HOLD,
    _P.REJECTED: _START | _HOLD,
    _P.RETRYING: _START | _HOLD | {_P.FAILED},  # by a report that arrives after the attempt was closed
    _P.SUSPENDING: frozenset({_P.SUSPENDED, _P.ERASING}),
    _P.SUSPENDED: _START | _HOLD,
    # An attempt is open. A queue may preempt it, and its cluster may start again.
    _P.QUEUED: frozenset({_P.STARTING, _P.RUNNING}) | _CLOSE,
    _P.STARTING: frozenset({_P.QUEUED, _P.RUNNING}) | _CLOSE,
    _P.RUNNING: frozenset({_P.QUEUED, _P.STARTING}) | _CLOSE,
    # The job has finished.
    _P.SUCCEEDED: frozenset({_P.ERASING}),
    _P.FAILED: frozenset({_P.ERASING}),
    _P.ERASING: frozenset(),
}

# In these phases an attempt is open: its RayJob exists or is about to be created.
OPEN = frozenset({_P.QUEUED, _P.STARTING, _P.RUNNING})


def check_transition(before: Phase, after: Phase) -> None:
    """Raise ValueError if the transition is not legal. Staying in a phase is always legal."""
    if after != before and after not in TRANSITIONS[before]:
        raise ValueError(f"a job cannot go from {before} to {after}; legal: {sorted(TRANSITIONS[before])}")
