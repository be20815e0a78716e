"""Batch Job that deletes the data of a deleted job, and the children it needs."""

from __future__ import annotations

from dreambooth_api import environment
from dreambooth_api.runtime import PodResources
from dreambooth_operator.controller.children.config_map import build_config_map, job_digest
from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.children.network_policy import build_erase_policy
from dreambooth_operator.controller.children.pods import build_container, build_pod_template
from dreambooth_operator.controller.children.service_account import build_service_account
from dreambooth_operator.controller.names import erase_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.machinery.resources import CONFIG_MAPS, NETWORK_POLICIES, SERVICE_ACCOUNTS, Json, Resource
from dreambooth_operator.resources import BATCH_JOBS

_RESOURCES = PodResources(cpu="1", memory="2Gi")


def erase_children(job: Job, resolved: ResolvedJob) -> list[tuple[Resource, Json]]:
    """The children in the order of their creation. The batch Job is last."""
    return [
        (SERVICE_ACCOUNTS, build_service_account(job, resolved)),
        (NETWORK_POLICIES, build_erase_policy(job, resolved)),
        (CONFIG_MAPS, build_config_map(job, erase_name(job), resolved)),
        (BATCH_JOBS, _erase_job(job, resolved)),
    ]


def _erase_job(job: Job, resolved: ResolvedJob) -> Json:
    container = build_container("erase", resolved, _RESOURCES, [job_digest(job, resolved)])
    container["command"] = [*environment.TRAINER_COMMAND, "erase", environment.JOB_FILE, "--out", resolved.out]
    template = build_pod_template(job, resolved, container, restart="Never")
    return {
        "apiVersion": BATCH_JOBS.api_version,
        "kind": BATCH_JOBS.kind,
        "metadata": child_metadata(job, erase_name(job)),
        "spec": {"backoffLimit": 2, "activeDeadlineSeconds": 3600, "template": template},
    }
