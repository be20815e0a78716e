"""Conditions that describe how far an attempt has come, from its Ray cluster and its trainer's reports. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dreambooth_api.status import (
    COMPLETED_BY,
    PHASE_MESSAGES,
    ConditionType,
    JobStatus,
    Report,
    TrainerPhase,
    fit_message,
)
from dreambooth_operator.controller.builder import DecisionBuilder
from dreambooth_operator.controller.failures import report_of_attempt
from dreambooth_operator.controller.observed import RayCluster
from dreambooth_operator.controller.observed_pods import Pod
from dreambooth_operator.controller.resolve import ResolutionError

_C = ConditionType
_NOT_REPORTED = (
    "The trainer succeeded, but its last report did not arrive. Check the job's output, for example with kubectl "
    "dreambooth images."
)


def set_accepted(builder: DecisionBuilder, error: ResolutionError | None) -> None:
    """Set condition Accepted. An error is recorded as an event once."""
    if error is None:
        builder.set_condition(_C.ACCEPTED, "True", "Valid", "The spec is valid and within the runtime's bounds.")
        return
    old = builder.condition(_C.ACCEPTED)
    if old is None or old.status != "False" or old.message != fit_message(error.message):
        builder.record_event("Warning", error.reason, error.message)
    builder.set_condition(_C.ACCEPTED, "False", error.reason, error.message)


def set_running_conditions(builder: DecisionBuilder, cluster: RayCluster | None, *, running: bool) -> None:
    """Set the conditions of an open attempt. `running` means that KubeRay has submitted the trainer."""
    if cluster is None:
        builder.set_condition(_C.CLUSTER_READY, "False", "Starting", "The Ray cluster is being created.")
        return
    if cluster.head_ready and (cluster.provisioned or running):
        builder.set_condition(_C.CLUSTER_READY, "True", "Ready", pod_summary(cluster))
    else:
        builder.set_condition(_C.CLUSTER_READY, "False", "WaitingForPods", pod_summary(cluster))
    if running:
        _set_phase_conditions(builder)


def running_message(builder: DecisionBuilder, cluster: RayCluster | None, *, running: bool) -> str:
    """What an open attempt is doing. It changes with the trainer's phases, but not with its steps."""
    if cluster is None:
        return "The Ray cluster is being created."
    if not cluster.head_ready or not (cluster.provisioned or running):
        return f"Waiting for pods to become ready. {pod_summary(cluster)}"
    report = report_of_attempt(builder.status)
    if not running or report is None or report.phase is None:
        return "The trainer is starting."
    return PHASE_MESSAGES.get(report.phase, f"The trainer is in phase {report.phase}.")


def set_success_conditions(builder: DecisionBuilder) -> str:
    """Set the conditions of a job whose RayJob succeeded, and return the message that summarizes them.

    A condition is True only for a phase that was reported or disabled. Reports may arrive late, so this is called
    again after the end.
    """
    builder.set_condition(_C.CLUSTER_READY, "True", "Finished", "The Ray cluster has finished and was deleted.")
    completed = _completed(builder) | _disabled(builder)
    for kind, _ in COMPLETED_BY:
        if kind in completed:
            _set_completed(builder, kind)
        else:
            builder.set_condition(kind, "Unknown", "NotReported", _NOT_REPORTED)
    location = _output_location(builder.status)
    message = f"The model was published to {location}." if location else f"The RayJob succeeded. {_NOT_REPORTED}"
    builder.set_condition(_C.SUCCEEDED, "True", "Succeeded", message)
    return message


def set_completed_conditions(builder: DecisionBuilder) -> None:
    """Set the conditions of the phases that the latest attempt completed before its job failed."""
    for kind in _completed(builder):
        _set_completed(builder, kind)


def with_pod_problem(cluster: RayCluster | None, pods: Sequence[Pod]) -> RayCluster | None:
    """`cluster` with the reason of its first waiting pod, which is more specific than the reason that KubeRay has."""
    problem = next((pod.problem for pod in pods if pod.problem), "")
    return replace(cluster, trouble=problem) if cluster and problem else cluster


def pod_summary(cluster: RayCluster) -> str:
    """Which pods of a cluster are ready, and why the others are not."""
    head = "Head ready" if cluster.head_ready else "Head not ready"
    counts = f"{head}, {cluster.workers_ready} of {cluster.workers_wanted} workers ready."
    return counts if cluster.head_ready and cluster.provisioned else f"{counts} {cluster.trouble}".strip()


def _set_phase_conditions(builder: DecisionBuilder) -> None:
    report = report_of_attempt(builder.status)
    if report is None or not _is_known(report):
        return
    completed = _completed(builder)
    for kind, phase in COMPLETED_BY:
        if kind in completed:
            _set_completed(builder, kind)
        else:
            builder.set_condition(kind, "False", "InProgress" if report.phase is phase else "Waiting")


def _is_known(report: Report) -> bool:
    """Whether the order of the reported phase is known. A newer trainer may have another one."""
    return report.phase is None or report.phase in list(TrainerPhase)


def _set_completed(builder: DecisionBuilder, kind: ConditionType) -> None:
    if kind is _C.PUBLISHED:
        location = _output_location(builder.status)
        builder.set_condition(kind, "True", "Published", f"The model was published to {location}.")
    else:
        builder.set_condition(kind, "True", "Skipped" if kind in _disabled(builder) else "Done")


def _completed(builder: DecisionBuilder) -> set[ConditionType]:
    """Conditions of the phases that the latest attempt has completed, by its own reports.

    A phase is complete when a later phase, or a result of a later phase, has been reported. Evaluated and Published
    also require that the scores and the output themselves were reported.
    """
    status = builder.status
    order: list[str] = list(TrainerPhase)
    report = report_of_attempt(status)
    if report is None:
        return set()
    reached = order.index(report.phase) if report.phase in order else -1
    if status.scores:
        reached = max(reached, order.index(TrainerPhase.EVALUATE))
    if status.output:
        reached = len(order)
    completed = {kind for kind, phase in COMPLETED_BY if reached > order.index(phase)} - {_C.EVALUATED}
    if status.scores or (_C.EVALUATED in _disabled(builder) and reached > order.index(TrainerPhase.EVALUATE)):
        completed.add(_C.EVALUATED)
    return completed


def _output_location(status: JobStatus) -> str:
    """Where the latest attempt published its model; empty if it has not reported that."""
    output = status.output if report_of_attempt(status) else None
    return (output.uri or "the job's output") if output else ""


def _disabled(builder: DecisionBuilder) -> set[ConditionType]:
    """Conditions of the phases that the job disables. If its spec is not valid any more, those of before."""
    spec = builder.job.spec
    if spec is None:
        skipped = (kind for kind, _ in COMPLETED_BY if (old := builder.condition(kind)) and old.reason == "Skipped")
        return set(skipped)
    enabled = {_C.CLASS_IMAGES_READY: spec.uses_class_images, _C.EVALUATED: spec.evaluation.enabled}
    return {kind for kind, is_enabled in enabled.items() if not is_enabled}
