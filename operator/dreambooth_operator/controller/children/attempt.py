"""All children of one attempt."""

from __future__ import annotations

from dreambooth_operator.controller.children.config_map import build_config_map, job_file_digest
from dreambooth_operator.controller.children.network_policy import build_attempt_policy
from dreambooth_operator.controller.children.rayjob import build_ray_job
from dreambooth_operator.controller.children.service_account import build_service_account
from dreambooth_operator.controller.names import attempt_name
from dreambooth_operator.controller.observed import Job, RayJob
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, SERVICE_ACCOUNTS, Json, Resource
from dreambooth_operator.resources import RAY_JOBS


def attempt_children(job: Job, attempt: int, resolved: ResolvedJob, settings: Settings) -> list[tuple[Resource, Json]]:
    """The children in the order of their creation. The RayJob is last, because its pods need the others.

    Its ConfigMap is created after it, so that it can be deleted with it. KubeRay starts the pods later, and the kubelet
    waits for the ConfigMap.
    """
    return [
        (SERVICE_ACCOUNTS, build_service_account(job, resolved)),
        (NETWORK_POLICIES, build_attempt_policy(job, attempt, resolved, settings)),
        (RAY_JOBS, build_ray_job(job, attempt, resolved, settings)),
    ]


def attempt_config_map(job: Job, attempt: int, resolved: ResolvedJob, ray_job: RayJob, progress_ca: str) -> Json | None:
    """The ConfigMap of an attempt; None if the job file is not that of the RayJob, because the runtime has changed."""
    if job_file_digest(job, resolved) != ray_job.job_sha256:
        return None
    return build_config_map(job, attempt_name(job, attempt), resolved, ray_job=ray_job, progress_ca=progress_ca)
