"""Why Kueue has not admitted a RayJob yet: the conditions of its Workload. Pure."""

from __future__ import annotations

from collections.abc import Sequence

from dreambooth_operator.controller.observed_pods import one_line
from dreambooth_operator.machinery.resources import Json, Resource, part, parts

WORKLOADS = Resource("kueue.x-k8s.io", "v1beta2", "workloads", "Workload")
# On every Workload: the uid of the job that it was created for.
JOB_UID_LABEL = "kueue.x-k8s.io/job-uid"


def waiting_reason(workloads: Sequence[Json]) -> str:
    """Reason and message of the condition that keeps a Workload from being admitted; empty if there is none."""
    for workload in workloads:
        conditions = {condition["type"]: condition for condition in parts(part(workload, "status"), "conditions")}
        for kind in ("QuotaReserved", "Admitted"):
            condition = part(conditions, kind)
            if condition.get("status") == "False" and condition.get("message"):
                return one_line(f"Kueue: {condition.get('reason') or kind}: {condition['message']}")
    return ""
