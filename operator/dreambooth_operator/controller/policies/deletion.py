"""`spec.output.deletionPolicy`: deletes the data of a job before the job itself. Pure.

With `Delete` the job has a finalizer. A deleted job keeps it until its pods are gone and a batch Job has deleted its
data, which the condition Erased records. `status.startedWith` says where the data is and how to delete it, so neither
the runtime nor a valid spec is needed.
"""

from __future__ import annotations

from datetime import timedelta

from dreambooth_api.started import StartedWith
from dreambooth_api.status import ConditionType, Failure, Phase
from dreambooth_operator.controller.actions import Create, Delete, SetFinalizer
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.names import erase_name
from dreambooth_operator.controller.observed import EraseJob, Job, Observed
from dreambooth_operator.controller.started import resolve_erasure
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import BATCH_JOBS, ERASE_FINALIZER

_RETRY_SECONDS = 60
_IN_PROGRESS = "Erasing"
_ERASING = "The job is being deleted: a pod is deleting its data."


def finalizer_change(job: Job) -> SetFinalizer | None:
    """The change that makes the finalizer of a job match its deletion policy, if that is known."""
    if job.status.started_with:
        policy = job.status.started_with.deletion_policy
    elif job.spec:
        policy = job.spec.output.deletion_policy
    else:
        return None
    wanted = policy == "Delete"
    return SetFinalizer(wanted) if wanted != (ERASE_FINALIZER in job.finalizers) else None


def reconcile_deletion(builder: DecisionBuilder, observed: Observed) -> None:
    """Delete the pods of a deleted job, then its data, then the finalizer."""
    job = builder.job
    if ERASE_FINALIZER not in job.finalizers:
        return  # children are deleted through their owner references
    if observed.ray_jobs:
        builder.set_phase(Phase.ERASING, "The job is being deleted: its pods are terminating.")
        builder.delete_ray_jobs(observed.ray_jobs)
        return
    builder.set_phase(Phase.ERASING, _ERASING)
    if job.status.attempts == 0:
        builder.add(SetFinalizer(present=False))
        return
    erase = observed.erase
    if erase and erase.owner_uid != job.uid:
        message = (
            f"The job's data cannot be deleted: batch Job {erase_name(job)} exists, and this job did not create it; "
            "delete it."
        )
        builder.set_phase(Phase.ERASING, message)
        builder.set_condition(ConditionType.ERASED, "False", "NameTaken", message)
    elif erase and erase.succeeded:
        builder.record_event("Normal", "Erased", "The job's images, latents, checkpoints and weights are deleted.")
        builder.set_condition(ConditionType.ERASED, "True", "Erased")
        builder.add(SetFinalizer(present=False))
    elif erase and erase.failed:
        _retry_erase(builder, erase)
    elif job.status.started_with is None:
        message = (
            "The job's data cannot be deleted: status.startedWith, which says where it is, is missing or not valid. "
            f"Delete the data at the job's output yourself, then remove the finalizer {ERASE_FINALIZER}."
        )
        builder.set_phase(Phase.ERASING, message)
        builder.set_condition(ConditionType.ERASED, "False", "LocationUnknown", message)
    elif erase is None:
        _create_erase(builder, job.status.started_with, observed.create_failure)


def _create_erase(builder: DecisionBuilder, started: StartedWith, refused: Failure | None) -> None:
    """Create the batch Job and what it needs. If the API server refuses one of them, wait before the next try."""
    status, known = builder.status, builder.condition(ConditionType.ERASED)
    if refused:
        _explain(builder, refused.reason, refused.message)
        builder.set_fields(next_attempt_time=builder.now + timedelta(seconds=_RETRY_SECONDS))
        builder.requeue_after(_RETRY_SECONDS)
        return
    if known is None:
        builder.set_condition(ConditionType.ERASED, "False", _IN_PROGRESS, _ERASING)
    elif known.reason != _IN_PROGRESS:
        builder.set_phase(Phase.ERASING, status.message)  # the error stays in the status until the batch Job exists
        if status.next_attempt_time and builder.now < status.next_attempt_time:
            builder.requeue_after((status.next_attempt_time - builder.now).total_seconds())
            return
    children = erase_children(builder.job, resolve_erasure(started))
    builder.add(*(Create(resource, obj) for resource, obj in children))


def _explain(builder: DecisionBuilder, reason: str, error: str) -> None:
    message = (
        f"{error} The operator retries. To skip this step, delete the data at the job's output yourself, then remove "
        f"the finalizer {ERASE_FINALIZER}."
    )
    builder.set_phase(Phase.ERASING, message)
    builder.set_condition(ConditionType.ERASED, "False", reason, message)


def _retry_erase(builder: DecisionBuilder, erase: EraseJob) -> None:
    """Record the error and try again after a delay. The error stays in the status during the next try."""
    job, due = builder.job, builder.status.next_attempt_time
    _explain(builder, "EraseFailed", erase.message)
    if due is None:
        due = builder.now + timedelta(seconds=_RETRY_SECONDS)
        builder.set_fields(next_attempt_time=due)
    if builder.now < due:
        builder.requeue_after((due - builder.now).total_seconds())
    else:
        builder.set_fields(next_attempt_time=None)
        builder.add(Delete(BATCH_JOBS, Key(job.key.namespace, erase_name(job)), ""))
