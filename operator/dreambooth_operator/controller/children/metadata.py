"""Metadata that all children share: name, labels and owner reference."""

from __future__ import annotations

from dreambooth_operator.controller.observed import Job, RayJob
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import ATTEMPT_LABEL, JOB_LABEL, RAY_JOBS


def child_metadata(job: Job, name: str, *, attempt: int | None = None, ray_job: RayJob | None = None) -> Json:
    """The metadata of a child, which is deleted together with its owner: the job, or the RayJob of an attempt."""
    owner = {key: job.reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    if ray_job:
        owner = {
            "apiVersion": RAY_JOBS.api_version, "kind": RAY_JOBS.kind, "name": ray_job.name, "uid": ray_job.uid,
        }  # fmt: skip
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
