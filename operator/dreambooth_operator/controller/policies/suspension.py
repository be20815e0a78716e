"""`spec.runPolicy.suspend`: a suspended job has no pods and resumes from its last checkpoint. Pure."""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import ConditionType, Phase
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.observed import Observed
from dreambooth_operator.controller.policies.deadline import pause_clock
from dreambooth_operator.controller.policies.start_deadline import stop_waiting

_SUSPENDING = "The pods are being deleted. Training can resume from the last checkpoint."
_SUSPENDED = "The job is suspended and has no pods. To resume it, set spec.runPolicy.suspend to false."


def suspend_attempt(builder: DecisionBuilder, observed: Observed) -> None:
    """End the open attempt without counting it as failed."""
    pause_clock(builder)
    stop_waiting(builder)
    builder.set_phase(Phase.SUSPENDING, _SUSPENDING)
    builder.set_condition(
        ConditionType.CLUSTER_READY, "False", "Suspended", "The job is suspended by spec.runPolicy.suspend."
    )
    builder.record_event("Normal", "Suspending", _SUSPENDING)
    builder.delete_ray_jobs(observed.ray_jobs)
    builder.requeue_after(0)


def keep_suspended(builder: DecisionBuilder, policy: RunPolicy, observed: Observed) -> bool:
    """Whether a job without an open attempt is suspended, or still being suspended.

    A job whose pods are still being deleted completes its suspension even if it has been resumed meanwhile.
    """
    if builder.status.phase is Phase.SUSPENDING:
        if observed.ray_jobs:
            builder.delete_ray_jobs(observed.ray_jobs)
        else:
            builder.set_phase(Phase.SUSPENDED, _SUSPENDED)
            builder.record_event("Normal", "Suspended", _SUSPENDED)
            builder.requeue_after(0)
        return True
    if not policy.suspend:
        return False
    stop_waiting(builder)
    if builder.status.phase is not Phase.SUSPENDED:
        phase, message = (Phase.SUSPENDING, _SUSPENDING) if observed.ray_jobs else (Phase.SUSPENDED, _SUSPENDED)
        builder.set_phase(phase, message)
    builder.delete_ray_jobs(observed.ray_jobs)
    return True
