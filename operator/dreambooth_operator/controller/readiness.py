"""Conditions Reconciling, Stalled and Ready, by which kstatus, Flux and `kubectl wait` judge any object. Pure.

They follow from the phase. Reconciling and Stalled exist only while they are true, as kstatus asks for.
"""

from __future__ import annotations

from dreambooth_api.status import ConditionType, Phase
from dreambooth_operator.controller.builder import DecisionBuilder

_C = ConditionType
# Phases in which nothing happens until a user acts, and the condition with the reason.
_STALLED = {Phase.REJECTED: _C.ACCEPTED, Phase.FAILED: _C.FAILED}
# Phases in which the operator does nothing and nothing is wrong.
_SETTLED = (Phase.SUCCEEDED, Phase.SUSPENDED)


def set_readiness(builder: DecisionBuilder) -> None:
    """Set the three conditions of a job whose phase and message are decided."""
    phase, message = builder.phase, builder.message
    if not message:  # not reconciled yet
        return
    cause = builder.condition(_STALLED[phase]) if phase in _STALLED else None
    reason = cause.reason if cause else phase
    builder.set_condition(_C.READY, "True" if phase is Phase.SUCCEEDED else "False", reason, message)
    holds = {_C.STALLED: phase in _STALLED, _C.RECONCILING: phase not in _STALLED and phase not in _SETTLED}
    for kind, is_true in holds.items():
        if is_true:
            builder.set_condition(kind, "True", reason, message)
        else:
            builder.remove_condition(kind)
