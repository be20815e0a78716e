"""NetworkPolicy of a job's pods."""

from __future__ import annotations

from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, Json
from dreambooth_operator.resources import JOB_LABEL

_DASHBOARD_PORT = 8265


def build_network_policy(job: Job) -> Json:
    """Allows ingress from pods of the same job, and from KubeRay to the Ray dashboard."""
    kuberay = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    same_job = {"matchLabels": {JOB_LABEL: job.key.name}}
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": child_metadata(job, base_name(job)),
        "spec": {
            "podSelector": same_job,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": same_job}]},
                {"from": [kuberay], "ports": [{"port": _DASHBOARD_PORT, "protocol": "TCP"}]},
            ],
        },
    }
