"""ServiceAccount of a job's pods."""

from __future__ import annotations

from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.machinery.resources import SERVICE_ACCOUNTS, Json


def build_service_account(job: Job, resolved: ResolvedJob) -> Json:
    """An identity without permissions in Kubernetes. Annotations of the runtime can give it an identity in a cloud."""
    metadata = child_metadata(job, base_name(job))
    if annotations := resolved.runtime.pods.service_account_annotations:
        metadata["annotations"] = dict(annotations)
    return {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "metadata": metadata,
        "automountServiceAccountToken": False,
    }
