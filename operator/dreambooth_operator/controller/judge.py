"""What the state of a RayJob and of its pods means for a job. Pure."""

from __future__ import annotations

import hashlib
import re

from dreambooth_operator.api.status import ConditionType, Failure, JobStatus, TrainerPhase
from dreambooth_operator.controller.draft import Draft
from dreambooth_operator.controller.views import RayCluster, RayJob

_C = ConditionType
# Exit codes of the trainer that say "trying again will not help".
_USER_EXITS = {
    2: ("UserError", "The trainer refused the job."),
    3: ("BelowThresholds", "The model scores below spec.evaluation.thresholds, and is not published."),
}
_EXIT_CODE = re.compile(r"exit code (\d+)")
# The condition that holds once the trainer is past a phase.
_PASSED = (
    (_C.PRIORS_READY, TrainerPhase.PRIORS),
    (_C.TRAINED, TrainerPhase.TRAIN),
    (_C.EVALUATED, TrainerPhase.EVALUATE),
    (_C.PUBLISHED, TrainerPhase.PUBLISH),
)
CLOSED_BY_SUCCESS = (
    (_C.CLUSTER_READY, "Finished", "The Ray cluster did its work and is gone."),
    (_C.PRIORS_READY, "Done", ""),
    (_C.TRAINED, "Done", ""),
    (_C.EVALUATED, "Done", ""),
    (_C.PUBLISHED, "Published", "The model is at {where}."),
    (_C.SUCCEEDED, "Succeeded", "The model is published to {where}."),
)


def judge_ray_job(ray_job: RayJob, status: JobStatus) -> Failure | None:
    """Why the attempt of a RayJob that ended failed; None if it succeeded.

    The trainer's own word counts most; else its exit code, which Ray puts into the message.
    """
    if ray_job.job == "SUCCEEDED":
        return None
    report = status.report
    if report and report.failure and report.attempt == status.attempts:
        return report.failure
    if ray_job.deployment == "ValidationFailed":
        return Failure(reason="RayJobRefused", message=f"KubeRay refused it: {ray_job.message}", retryable=False)
    exit_code = _EXIT_CODE.search(ray_job.message)
    if exit_code and (user := _USER_EXITS.get(int(exit_code[1]))):
        reason, message = user
        return Failure(reason=reason, message=f"{message} {ray_job.message}".strip(), retryable=False)
    if ray_job.job == "STOPPED":
        return Failure(reason="Stopped", message="Somebody stopped the Ray job.")
    return Failure(reason=ray_job.reason or "AppFailed", message=ray_job.message or "The Ray job failed.")


def tell_progress(draft: Draft, cluster: RayCluster | None, *, running: bool, grace_seconds: float) -> Failure | None:
    """Write the conditions of an attempt under way; a failure if its head pod is lost.

    KubeRay replaces a dead head and submits the job again, for ever. An attempt is one head: with another
    one it is over, and the next attempt goes on from the last checkpoint.
    """
    status = draft.job.status
    if cluster is None:
        draft.condition(_C.CLUSTER_READY, "False", "Starting", "The Ray cluster is being created.")
        return None
    if status.head_pod is None:
        if cluster.head and cluster.head_ready and running:
            draft.set(head_pod=cluster.head)
    elif cluster.head_gone or (cluster.head and cluster.head != status.head_pod):
        return Failure(reason="HeadLost", message=f"Head pod {status.head_pod} died.")
    elif not cluster.head_ready:
        since = status.head_lost_since or draft.now
        lost_seconds = (draft.now - since).total_seconds()
        if lost_seconds >= grace_seconds:
            return Failure(
                reason="HeadLost", message=f"Head pod {status.head_pod} was not ready for {lost_seconds:.0f} s."
            )
        draft.set(head_lost_since=since)
        draft.look_again(grace_seconds - lost_seconds)
    elif status.head_lost_since:
        draft.set(head_lost_since=None)
    if cluster.head_ready and (cluster.provisioned or running):
        draft.condition(_C.CLUSTER_READY, "True", "Ready", _pods(cluster))
    else:
        draft.condition(_C.CLUSTER_READY, "False", "WaitingForPods", _pods(cluster))
    if running:
        _tell_phases(draft, status)
    return None


def pods_late(draft: Draft, cluster: RayCluster | None, *, patience_seconds: float) -> Failure | None:
    """A failure if the pods of an attempt did not all come in time; call it before the trainer runs.

    Jobs that each hold some of the last free nodes would wait for each other for ever, so one must give its own back.
    Patience is up to doubled, by an amount that is the attempt's own, so that not all give up together.
    """
    status = draft.job.status
    digest = hashlib.sha256(f"{draft.job.uid}/{status.attempts}".encode()).digest()
    share = int.from_bytes(digest[:4]) / 2**32
    patience = round(patience_seconds * (1 + share))  # times are kept in whole seconds
    waited = (draft.now - (status.active_since or draft.now)).total_seconds()
    if waited < patience:
        draft.look_again(patience - waited)
        return None
    here = _pods(cluster) if cluster else "No Ray cluster was made."
    why = "They are given back, so that another job may go first; this costs no retry."
    return Failure(reason="PodsNotReady", message=f"Not all pods were ready within {waited:.0f} s. {here} {why}")


def done_reason(draft: Draft, kind: ConditionType, usual: str) -> str:
    """Why a condition holds at the end: what the job asked to leave out was not done, but skipped."""
    spec = draft.job.spec
    left_out = spec is not None and (
        (kind is _C.PRIORS_READY and not spec.priors.enabled) or (kind is _C.EVALUATED and not spec.evaluation.enabled)
    )
    return "Skipped" if left_out else usual


def _pods(cluster: RayCluster) -> str:
    """Which pods of a cluster are ready, and what keeps the others."""
    head = "Head ready" if cluster.head_ready else "Head not ready"
    told = f"{head}, {cluster.workers_ready} of {cluster.workers_wanted} workers ready."
    return told if cluster.head_ready and cluster.provisioned else f"{told} {cluster.trouble}".strip()


def _tell_phases(draft: Draft, status: JobStatus) -> None:
    order, report = list(TrainerPhase), status.report
    if report is None or report.phase is None or report.attempt != status.attempts:
        return
    now_at = order.index(report.phase)
    for kind, phase in _PASSED:
        if now_at > order.index(phase):
            draft.condition(kind, "True", done_reason(draft, kind, "Done"))
        else:
            draft.condition(kind, "False", "UnderWay" if report.phase is phase else "Waiting")
