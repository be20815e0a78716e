"""The decision of the controller: a pure, level-triggered function of the observed objects and the time.

Invariant: a job never has two live attempts. Three steps ensure it, and the controller may be interrupted after each:
1. An attempt is opened in the status only, and only if no RayJob of the job exists, not even one that is being
   deleted. (RayJobs are deleted in the foreground, so they exist until their pods are gone.)
2. The RayJob is created under a name that is derived from that status, by any process and any number of times.
3. Once the status contains its uid, the RayJob is never created again. If it is gone, the attempt is closed before
   the next one is opened.
"""

from __future__ import annotations

from datetime import datetime

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_api.status import TERMINAL, Phase
from dreambooth_operator.controller.actions import Decision
from dreambooth_operator.controller.attempts import monitor_attempt, start_attempt
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.completion import apply_late_failure, fail_job, update_failed_job
from dreambooth_operator.controller.failures import late_failure
from dreambooth_operator.controller.lifecycle import OPEN
from dreambooth_operator.controller.observed import Job, Observed
from dreambooth_operator.controller.policies.cleanup import remove_children
from dreambooth_operator.controller.policies.deletion import finalizer_change, reconcile_deletion
from dreambooth_operator.controller.policies.retries import wait_for_retry
from dreambooth_operator.controller.policies.start_deadline import start_deadline_exceeded
from dreambooth_operator.controller.policies.stuck_pods import report_stuck_pod
from dreambooth_operator.controller.policies.suspension import keep_suspended
from dreambooth_operator.controller.policies.ttl import apply_ttl
from dreambooth_operator.controller.readiness import set_readiness
from dreambooth_operator.controller.resolve import Resolution, ResolutionError, ResolvedJob, run_policy
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.controller.status import set_accepted, set_success_conditions


def decide(job: Job, resolution: Resolution, observed: Observed, now: datetime, settings: Settings) -> Decision:
    """The next actions for `job`, given its resolved spec and its children."""
    builder = DecisionBuilder(job, now)
    own = observed.without_others(job.uid)
    if job.deleted:
        reconcile_deletion(builder, own)
    elif change := finalizer_change(job):
        return Decision((change,))
    elif job.status.phase in TERMINAL:
        reconcile_finished(builder, run_policy(job, resolution), own)
    elif job.status.phase in OPEN:
        monitor_attempt(builder, resolution, observed, settings)
    else:
        reconcile_idle(builder, resolution, own)
    report_stuck_pod(builder, observed)
    set_readiness(builder)
    return builder.build()


def reconcile_idle(builder: DecisionBuilder, resolution: Resolution, observed: Observed) -> None:
    """Reconcile a job without an open attempt: start the next one, unless something prevents it."""
    status, policy = builder.status, run_policy(builder.job, resolution)
    late = late_failure(status) if status.phase is Phase.RETRYING else None
    if late and apply_late_failure(builder, late):
        return
    if keep_suspended(builder, policy, observed):
        return
    if status.phase is Phase.RETRYING and (exceeded := start_deadline_exceeded(builder, policy)):
        fail_job(builder, exceeded.reason, exceeded.message)
        builder.delete_ray_jobs(observed.ray_jobs)
        return
    if wait_for_retry(builder, observed):
        return
    if isinstance(resolution, ResolutionError):
        _reject(builder, resolution)
    elif observed.ray_jobs:
        builder.delete_ray_jobs(observed.ray_jobs)
    else:
        assert isinstance(resolution, ResolvedJob)  # as of any job without an open attempt
        start_attempt(builder, resolution)


def reconcile_finished(builder: DecisionBuilder, policy: RunPolicy, observed: Observed) -> None:
    """Reconcile a finished job: stop what still runs, record late reports, apply the TTL."""
    builder.delete_ray_jobs(r for r in observed.ray_jobs if not r.ended)
    remove_children(builder, observed)
    if builder.status.phase is Phase.SUCCEEDED:
        builder.set_phase(Phase.SUCCEEDED, set_success_conditions(builder))
    else:
        update_failed_job(builder, policy)
    apply_ttl(builder, policy)


def _reject(builder: DecisionBuilder, error: ResolutionError) -> None:
    set_accepted(builder, error)
    builder.set_phase(Phase.REJECTED, error.message)
