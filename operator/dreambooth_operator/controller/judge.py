"""What the state of a RayJob and of its pods means for a job. Pure."""

from __future__ import annotations

import hashlib
import re

from dreambooth_api.environment import BELOW_THRESHOLDS, INVALID_INPUT, ExitCode
from dreambooth_api.status import ConditionType, Failure, JobStatus, Report, TrainerPhase
from dreambooth_operator.controller.draft import Draft
from dreambooth_operator.controller.views import RayCluster, RayJob

_C = ConditionType
# Exit codes of the trainer that say "trying again will not help".
_USER_EXITS: dict[int, tuple[str, str]] = {
    ExitCode.INVALID_INPUT: (INVALID_INPUT, "The trainer refused the job."),
    ExitCode.BELOW_THRESHOLDS: (
        BELOW_THRESHOLDS,
        "The model scores below spec.evaluation.thresholds, and is not published.",
    ),
}
_EXIT_CODE = re.compile(r"exit code (\d+)")
# The condition that holds once the trainer is past a phase.
_PASSED = (
    (_C.CLASS_IMAGES_READY, TrainerPhase.CLASS_IMAGES),
    (_C.TRAINED, TrainerPhase.TRAIN),
    (_C.EVALUATED, TrainerPhase.EVALUATE),
    (_C.PUBLISHED, TrainerPhase.PUBLISH),
)
_NOT_REPORTED = (
    "The trainer ended well, but its last report did not arrive. Look at the job's output, for example with kubectl "
    "dreambooth images."
)


def judge_ray_job(ray_job: RayJob, status: JobStatus) -> Failure | None:
    """Why the attempt of a RayJob that ended failed; None if it succeeded.

    The trainer's own word counts most; else its exit code, which Ray puts into the message.
    """
    if ray_job.job == "SUCCEEDED":
        return None
    if failure := reported_failure(status):
        return failure
    if ray_job.deployment == "ValidationFailed":
        return Failure(reason="RayJobRefused", message=f"KubeRay refused it: {ray_job.message}", retryable=False)
    exit_code = _EXIT_CODE.search(ray_job.message)
    if exit_code and (user := _USER_EXITS.get(int(exit_code[1]))):
        reason, message = user
        return Failure(reason=reason, message=f"{message} {ray_job.message}".strip(), retryable=False)
    if ray_job.job == "STOPPED":
        return Failure(reason="Stopped", message="Somebody stopped the Ray job.")
    return Failure(reason=ray_job.reason or "AppFailed", message=ray_job.message or "The Ray job failed.")


def report_of_attempt(status: JobStatus) -> Report | None:
    """What the latest attempt has reported; None if nothing yet."""
    return status.report if status.report and status.report.attempt == status.attempts else None


def reported_failure(status: JobStatus) -> Failure | None:
    """The failure that the trainer of the latest attempt has reported."""
    report = report_of_attempt(status)
    return report.failure if report else None


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
        _tell_phases(draft)
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


def tell_success(draft: Draft) -> str:
    """Write the conditions of a job whose RayJob succeeded, and return the sentence that sums them up.

    A condition is True only for what was reported, or was not asked for. Call it again when a report comes late.
    """
    draft.condition(_C.CLUSTER_READY, "True", "Finished", "The Ray cluster did its work and is gone.")
    reached = _reached(draft) | _left_out(draft)
    for kind, _ in _PASSED:
        if kind in reached:
            _tell_reached(draft, kind)
        else:
            draft.condition(kind, "Unknown", "NotReported", _NOT_REPORTED)
    place = _place(draft.job.status)
    message = f"The model is published to {place}." if place else f"The RayJob succeeded. {_NOT_REPORTED}"
    draft.condition(_C.SUCCEEDED, "True", "Succeeded", message)
    return message


def tell_reached(draft: Draft) -> None:
    """Write the conditions of what the latest attempt has behind it, though its job failed."""
    for kind in _reached(draft):
        _tell_reached(draft, kind)


def _tell_reached(draft: Draft, kind: ConditionType) -> None:
    if kind is _C.PUBLISHED:
        draft.condition(kind, "True", "Published", f"The model is at {_place(draft.job.status)}.")
    else:
        draft.condition(kind, "True", "Skipped" if kind in _left_out(draft) else "Done")


def _reached(draft: Draft) -> set[ConditionType]:
    """What the latest attempt has behind it, by its own report.

    A phase is passed when a later one is reported, or what only a later one brings. Scores and an output must be
    reported themselves.
    """
    status, order = draft.job.status, list(TrainerPhase)
    report = report_of_attempt(status)
    if report is None:
        return set()
    at = order.index(report.phase) if report.phase else -1
    if status.scores:
        at = max(at, order.index(TrainerPhase.EVALUATE))
    if status.output:
        at = len(order)
    reached = {kind for kind, phase in _PASSED if at > order.index(phase)} - {_C.EVALUATED}
    if status.scores or (_C.EVALUATED in _left_out(draft) and at > order.index(TrainerPhase.EVALUATE)):
        reached.add(_C.EVALUATED)
    return reached


def _place(status: JobStatus) -> str:
    """Where the latest attempt reported its model to be; empty if it did not."""
    output = status.output if report_of_attempt(status) else None
    return (output.uri or "the job's output") if output else ""


def _left_out(draft: Draft) -> set[ConditionType]:
    """What the job asked to leave out: it is skipped, not done."""
    spec = draft.job.spec
    if spec is None:
        return set()
    enabled = {_C.CLASS_IMAGES_READY: spec.prior_preservation.enabled, _C.EVALUATED: spec.evaluation.enabled}
    return {kind for kind, wanted in enabled.items() if not wanted}


def _pods(cluster: RayCluster) -> str:
    """Which pods of a cluster are ready, and what keeps the others."""
    head = "Head ready" if cluster.head_ready else "Head not ready"
    told = f"{head}, {cluster.workers_ready} of {cluster.workers_wanted} workers ready."
    return told if cluster.head_ready and cluster.provisioned else f"{told} {cluster.trouble}".strip()


def _tell_phases(draft: Draft) -> None:
    """Write how far the running attempt has come."""
    report = report_of_attempt(draft.job.status)
    if report is None:
        return
    reached = _reached(draft)
    for kind, phase in _PASSED:
        if kind in reached:
            _tell_reached(draft, kind)
        else:
            draft.condition(kind, "False", "UnderWay" if report.phase is phase else "Waiting")
