"""ServiceAccount of a job's pods."""

from __future__ import annotations

from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.machinery.resources import SERVICE_ACCOUNTS, Json


def build_service_account(job: Job) -> Json:
    """An identity without permissions. It only authenticates reports to the status server."""
    return {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "metadata": child_metadata(job, base_name(job)),
        "automountServiceAccountToken": False,
    }
