"""Metadata that all children share: name, labels and owner reference."""

from __future__ import annotations

from dreambooth_operator.controller.observed import Job
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import ATTEMPT_LABEL, JOB_LABEL


def child_metadata(job: Job, name: str, *, attempt: int | None = None) -> Json:
    """The metadata of a child, which is deleted together with its job."""
    owner = {key: job.reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    return {
        "name": name,
        "namespace": job.key.namespace,
        "labels": child_labels(job, attempt),
        "ownerReferences": [{**owner, "controller": True}],
    }


def child_labels(job: Job, attempt: int | None) -> dict[str, str]:
    """The labels by which the operator, users and network policies select a job's children."""
    labels = {JOB_LABEL: job.key.name, "app.kubernetes.io/managed-by": "dreambooth-operator"}
    return {**labels, ATTEMPT_LABEL: str(attempt)} if attempt else labels
