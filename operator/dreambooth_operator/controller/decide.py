"""What a job needs next, as a pure function of what is seen and of the time.

The invariant: never two attempts alive. Its proof is the order of three steps, each of which an
interruption may follow:
1. an attempt begins only in the status, and only when no RayJob of the job is there, not even one that is
   going away (a RayJob goes away after its pods: it is deleted in the foreground);
2. its RayJob is created under a name made from that status, by whoever comes by, as often as they like;
3. once its uid is in the status it is never created again: gone means lost, and an attempt is closed
   before the next one begins.
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta

from dreambooth_api.job import RunPolicy
from dreambooth_api.status import TERMINAL, ConditionType, Failure, Phase, fit_message
from dreambooth_operator.controller.draft import Create, Decision, Delete, DeleteJob, Draft, SetFinalizer
from dreambooth_operator.controller.ending import (
    DEADLINE,
    active_seconds,
    close,
    complete_failure,
    fail,
    late_failure,
    pause_clock,
    take_late_failure,
)
from dreambooth_operator.controller.judge import judge_ray_job, pods_late, tell_progress, tell_success
from dreambooth_operator.controller.names import attempt_name, erase_name
from dreambooth_operator.controller.rayjob import Settings, attempt_children, erase_children
from dreambooth_operator.controller.resolve import Problem, Resolved
from dreambooth_operator.controller.states import OPEN
from dreambooth_operator.controller.views import EraseJob, Job, Observed, RayJob
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import BATCH_JOBS, ERASE_FINALIZER, RAY_JOBS

_ERASE_RETRY_SECONDS = 60
_C = ConditionType


def decide(job: Job, resolution: Resolved | Problem, observed: Observed, now: datetime, settings: Settings) -> Decision:
    """What to do about `job`, given its children and how its spec and runtime resolve."""
    draft = Draft(job, now)
    if job.deleted:
        _erase(draft, resolution, observed)
        return draft.decision()
    wants_erasure = job.spec is not None and job.spec.output.deletion_policy == "Delete"
    if wants_erasure != (ERASE_FINALIZER in job.finalizers):
        return Decision((SetFinalizer(wants_erasure),))
    if job.status.phase in TERMINAL:
        _after_the_end(draft, resolution, observed)
    elif job.status.phase in OPEN:
        _follow(draft, resolution, observed, settings)
    else:
        _between(draft, resolution, observed)
    return draft.decision()


def _policy(job: Job, resolution: Resolved | Problem) -> RunPolicy:
    if isinstance(resolution, Resolved):
        return resolution.spec.run_policy
    return job.spec.run_policy if job.spec else RunPolicy()


# --- no attempt is open ---------------------------------------------------------------------------------


def _between(draft: Draft, resolution: Resolved | Problem, observed: Observed) -> None:
    status, policy = draft.job.status, _policy(draft.job, resolution)
    if status.phase is Phase.RETRYING and (late := late_failure(draft)) and take_late_failure(draft, late):
        return
    if status.phase is Phase.SUSPENDING:
        if observed.ray_jobs:
            _delete(draft, observed.ray_jobs)
        else:
            draft.move(Phase.SUSPENDED)
            draft.event("Normal", "Suspended", "All pods are gone; set spec.runPolicy.suspend to false to go on.")
            draft.look_again(0)
        return
    if policy.suspend:
        if status.phase is not Phase.SUSPENDED:
            draft.move(Phase.SUSPENDING if observed.ray_jobs else Phase.SUSPENDED)
        _delete(draft, observed.ray_jobs)
        return
    if status.phase is Phase.RETRYING and status.next_attempt_time and draft.now < status.next_attempt_time:
        draft.look_again((status.next_attempt_time - draft.now).total_seconds())
        _delete(draft, [r for r in observed.ray_jobs if not r.ended])  # what ended may be looked at meanwhile
        return
    if isinstance(resolution, Problem):
        _reject(draft, resolution)
        return
    if observed.ray_jobs:
        _delete(draft, observed.ray_jobs)
        return
    _begin(draft, policy)


def _reject(draft: Draft, problem: Problem) -> None:
    old = next((c for c in draft.job.status.conditions if c.type is _C.ACCEPTED), None)
    if old is None or old.status != "False" or old.message != fit_message(problem.message):
        draft.event("Warning", problem.reason, problem.message)
    draft.move(Phase.REJECTED)
    draft.condition(_C.ACCEPTED, "False", problem.reason, problem.message)


def _begin(draft: Draft, policy: RunPolicy) -> None:
    """Open the next attempt, in the status only; the RayJob follows once that is written."""
    status, attempt = draft.job.status, draft.job.status.attempts + 1
    name, queued = attempt_name(draft.job, attempt), policy.queue_name is not None
    draft.move(Phase.QUEUED if queued else Phase.STARTING)
    draft.set(
        attempts=attempt,
        ray_job_name=name,
        ray_job_uid=None,
        head_pod=None,
        head_lost_since=None,
        next_attempt_time=None,
        start_time=status.start_time or draft.now,
        active_since=None if queued else draft.now,
    )
    draft.condition(_C.ACCEPTED, "True", "Valid", "The spec holds and its runtime allows it.")
    if queued:
        draft.condition(_C.QUEUED, "True", "Waiting", f"Waits for queue {policy.queue_name} to admit it.")
    draft.condition(_C.CLUSTER_READY, "False", "Starting", "The Ray cluster is being created.")
    draft.event("Normal", "AttemptStarted", f"Attempt {attempt} begins as RayJob {name}.")
    draft.look_again(0)


# --- an attempt is open -----------------------------------------------------------------------------------


def _follow(draft: Draft, resolution: Resolved | Problem, observed: Observed, settings: Settings) -> None:
    status, policy = draft.job.status, _policy(draft.job, resolution)
    ray_job = observed.ray_job(status.ray_job_name)
    _delete(draft, [r for r in observed.ray_jobs if r is not ray_job])
    if ray_job is None:
        if observed.refusal:
            close(draft, observed.refusal, policy, settings)
            return
        if status.ray_job_uid is None and not policy.suspend:
            _create(draft, resolution, settings)
            return
        if status.ray_job_uid is not None:
            deleted = Failure(reason="RayJobDeleted", message=f"RayJob {status.ray_job_name} was deleted by somebody.")
            close(draft, deleted, policy, settings)
            return
    elif ray_job.owner_uid != draft.job.uid or (status.ray_job_uid or ray_job.uid) != ray_job.uid:
        taken = Failure(reason="NameTaken", message=f"Another RayJob has the name {ray_job.name}.")
        close(draft, taken, policy, settings)
        return
    elif status.ray_job_uid is None:
        draft.set(ray_job_uid=ray_job.uid)
    if ray_job is not None and ray_job.ended:
        _end_attempt(draft, ray_job, resolution, settings)
        return
    if policy.suspend:
        pause_clock(draft)
        draft.move(Phase.SUSPENDING)
        draft.condition(_C.CLUSTER_READY, "False", "Suspended", "Suspended by spec.runPolicy.suspend.")
        draft.event("Normal", "Suspending", "The job stops at its last checkpoint.")
        _delete(draft, observed.ray_jobs)
        draft.look_again(0)
        return
    assert ray_job is not None
    _watch_over(draft, ray_job, policy, observed, settings)


def _create(draft: Draft, resolution: Resolved | Problem, settings: Settings) -> None:
    if isinstance(resolution, Problem):  # it began, but its runtime changed before it was created
        close(draft, Failure(reason=resolution.reason, message=resolution.message), RunPolicy(), settings, counts=False)
        return
    children = attempt_children(draft.job, draft.job.status.attempts, resolution, settings)
    draft.do(*(Create(resource, obj) for resource, obj in children))


def _watch_over(draft: Draft, ray_job: RayJob, policy: RunPolicy, observed: Observed, settings: Settings) -> None:
    """An attempt that is neither over nor to be stopped: tell where it is, count its time, miss its head."""
    if ray_job.deleting:  # by somebody; counted as lost when it is gone
        return
    if ray_job.suspended or ray_job.deployment in ("Suspending", "Suspended"):
        pause_clock(draft)
        draft.move(Phase.QUEUED)
        queue = f"queue {policy.queue_name}" if policy.queue_name else f"RayJob {ray_job.name}, which is suspended"
        draft.condition(_C.QUEUED, "True", "Waiting", f"Waits for {queue} to admit it.")
        draft.condition(_C.CLUSTER_READY, "False", "Queued")
        draft.set(head_pod=None, head_lost_since=None)  # admitted again, it has another head
        return
    if draft.job.status.active_since is None:
        draft.set(active_since=draft.now)
    if any(c.type is _C.QUEUED and c.status == "True" for c in draft.job.status.conditions):
        draft.condition(_C.QUEUED, "False", "Admitted")
    if _past_deadline(draft, policy):
        seconds = policy.active_deadline_seconds
        late = f"It ran for {seconds} s, all that spec.runPolicy.activeDeadlineSeconds allows, over all attempts."
        fail(draft, DEADLINE, late)
        _delete(draft, observed.ray_jobs)
        return
    cluster = observed.cluster_of(ray_job.name)
    running = ray_job.deployment == "Running"
    if lost := tell_progress(draft, cluster, running=running, grace_seconds=settings.head_grace_seconds):
        close(draft, lost, policy, settings)
        _delete(draft, observed.ray_jobs)
        return
    if not running and (late := pods_late(draft, cluster, patience_seconds=settings.pods_ready_seconds)):
        close(draft, late, policy, settings, counts=False)
        _delete(draft, observed.ray_jobs)
        return
    if running and draft.job.status.phase is not Phase.RUNNING:
        draft.event("Normal", "Running", f"RayJob {ray_job.name} runs the trainer.")
    draft.move(Phase.RUNNING if running else Phase.STARTING)


def _end_attempt(draft: Draft, ray_job: RayJob, resolution: Resolved | Problem, settings: Settings) -> None:
    failure = judge_ray_job(ray_job, draft.job.status)
    if failure is not None:
        close(draft, failure, _policy(draft.job, resolution), settings)
        return
    pause_clock(draft)
    draft.move(Phase.SUCCEEDED)
    draft.set(completion_time=draft.now)
    draft.event("Normal", "Succeeded", tell_success(draft))
    draft.look_again(0)


# --- the deadline -----------------------------------------------------------------------------------------


def _past_deadline(draft: Draft, policy: RunPolicy) -> bool:
    if policy.active_deadline_seconds is None:
        return False
    left = policy.active_deadline_seconds - active_seconds(draft)
    if left > 0:
        draft.look_again(left)
    return left <= 0


# --- the end ----------------------------------------------------------------------------------------------


def _after_the_end(draft: Draft, resolution: Resolved | Problem, observed: Observed) -> None:
    policy = _policy(draft.job, resolution)
    _delete(draft, [r for r in observed.ray_jobs if not r.ended])
    if draft.job.status.phase is Phase.SUCCEEDED:
        tell_success(draft)
    else:
        complete_failure(draft, policy)
    ttl, ended = policy.ttl_seconds_after_finished, draft.job.status.completion_time
    if ttl is None or ended is None:
        return
    left = ttl - (draft.now - ended).total_seconds()
    if left <= 0:
        draft.do(DeleteJob())
    else:
        draft.look_again(left)


def _erase(draft: Draft, resolution: Resolved | Problem, observed: Observed) -> None:
    """A deleted job that still has our finalizer: stop it, remove what it made, let it go."""
    job = draft.job
    if ERASE_FINALIZER not in job.finalizers:
        return  # owner references do the rest
    draft.move(Phase.ERASING)
    if observed.ray_jobs:
        _delete(draft, observed.ray_jobs)
        return
    if job.status.attempts == 0:
        draft.do(SetFinalizer(present=False))
        return
    erase = observed.erase
    if erase and erase.succeeded:
        draft.event("Normal", "Erased", "Images, latents, checkpoints and weights are removed.")
        draft.condition(_C.ERASED, "True", "Erased")
        draft.do(SetFinalizer(present=False))
    elif erase and erase.failed:
        _erase_failed(draft, erase)
    elif isinstance(resolution, Problem):
        draft.condition(_C.ERASED, "False", resolution.reason, f"Cannot erase: {resolution.message}")
        draft.look_again(_ERASE_RETRY_SECONDS)
    elif erase is None:
        if not any(c.type is _C.ERASED for c in job.status.conditions):
            draft.condition(_C.ERASED, "False", "Erasing", "A pod removes what the job made.")
        draft.do(*(Create(resource, obj) for resource, obj in erase_children(job, resolution)))


def _erase_failed(draft: Draft, erase: EraseJob) -> None:
    """Say why, and try again after a pause; the last word stays readable while the next try runs."""
    job, due = draft.job, draft.job.status.next_attempt_time
    message = (
        f"{erase.message} Trying again. To give up, remove by hand what is at the job's output, then "
        f"the finalizer {ERASE_FINALIZER}."
    )
    draft.condition(_C.ERASED, "False", "EraseFailed", message)
    if due is None:
        due = draft.now + timedelta(seconds=_ERASE_RETRY_SECONDS)
        draft.set(next_attempt_time=due)
    if draft.now < due:
        draft.look_again((due - draft.now).total_seconds())
    else:
        draft.set(next_attempt_time=None)
        draft.do(Delete(BATCH_JOBS, Key(job.key.namespace, erase_name(job)), ""))


def _delete(draft: Draft, ray_jobs: Iterable[RayJob]) -> None:
    """Delete RayJobs of this job, unless they are going away already. Others of the same name are left alone."""
    for ray_job in ray_jobs:
        if not ray_job.deleting and ray_job.owner_uid == draft.job.uid:
            draft.do(Delete(RAY_JOBS, Key(draft.job.key.namespace, ray_job.name), ray_job.uid))
