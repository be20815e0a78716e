"""RayJob of one attempt."""

from __future__ import annotations

from dreambooth_api import environment
from dreambooth_api.fields import quantity_value
from dreambooth_api.progress import report_path
from dreambooth_api.runtime import PodResources
from dreambooth_api.uris import volume_uri
from dreambooth_operator.controller.children.api_token import api_token_mount, api_token_volume
from dreambooth_operator.controller.children.config_map import job_digest, job_file_digest
from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.children.pods import (
    build_container,
    build_pod_template,
    container_security_context,
)
from dreambooth_operator.controller.names import attempt_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.queueing.kueue import kueue_annotations, kueue_labels
from dreambooth_operator.controller.queueing.select import select_queue
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import HEAD_CONTAINER, JOB_SHA256_ANNOTATION, RAY_JOBS, WORKER_CONTAINER

ENTRYPOINT = f'{" ".join(environment.TRAINER_COMMAND)} run {environment.JOB_FILE} --out "${environment.OUT}"'
# KubeRay's own probe has an initial delay of ten seconds and a period of five, and a job is submitted only when all
# pods are ready.
_READINESS_PROBE = {
    "httpGet": {"path": "/api/healthz", "port": 52365},
    "periodSeconds": 2,
    "timeoutSeconds": 5,
    "failureThreshold": 10,
}

_MIN_OBJECT_STORE_BYTES = 75 * 2**20  # Ray accepts no less


def build_ray_job(job: Job, attempt: int, resolved: ResolvedJob, settings: Settings) -> Json:
    """The RayJob whose entrypoint is the trainer. It makes one attempt; the operator starts the retries."""
    queue = select_queue(resolved.spec.run_policy)
    metadata = child_metadata(job, attempt_name(job, attempt), attempt=attempt)
    metadata["labels"] |= {**kueue_labels(resolved.spec.run_policy), **queue.labels}
    # KubeRay copies the annotation to the RayCluster: it does not replace a dead head pod, which would run the trainer
    # a second time.
    metadata["annotations"] = {
        "ray.io/disable-provisioned-head-restart": "true",
        JOB_SHA256_ANNOTATION: job_file_digest(job, resolved),
        **kueue_annotations(elastic=resolved.spec.cluster.elastic is not None),
        **queue.annotations,
    }
    return {
        "apiVersion": RAY_JOBS.api_version,
        "kind": RAY_JOBS.kind,
        "metadata": metadata,
        "spec": {
            "entrypoint": ENTRYPOINT,
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,  # the operator counts the retries
            "shutdownAfterJobFinishes": True,
            "suspend": queue.starts_suspended,
            "rayClusterSpec": _cluster_spec(job, attempt, resolved, settings),
        },
    }


def _cluster_spec(job: Job, attempt: int, resolved: ResolvedJob, settings: Settings) -> Json:
    spec, runtime = resolved.spec, resolved.runtime
    variables = _variables(job, attempt, resolved, settings)

    def template(container_name: str, resources: PodResources, *, restart: str = "") -> Json:
        container = build_container(container_name, resolved, resources, variables)
        container["readinessProbe"] = _READINESS_PROBE
        patch = resources.pod_template.model_dump(by_alias=True, exclude_unset=True) if resources.pod_template else {}
        return build_pod_template(job, resolved, container, attempt=attempt, restart=restart, patch=patch)

    elastic, workers = spec.cluster.elastic, spec.cluster.workers
    store = str(object_store_bytes(runtime.pods.shared_memory))
    min_workers, max_workers = (elastic.min_workers, elastic.max_workers) if elastic else (workers, workers)
    cluster: Json = {
        "rayVersion": runtime.ray_version,
        # KubeRay creates a Secret with a token for each cluster. Without the token Ray rejects all requests.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # Ray schedules no work on the head.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0", "object-store-memory": store},
            # A head container that restarts in place would run the trainer a second time.
            "template": template(HEAD_CONTAINER, runtime.pods.head, restart="Never"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": min(max(workers, min_workers), max_workers),
                "minReplicas": min_workers,
                "maxReplicas": max_workers,
                # Ray would count the node's GPUs if the pod has none.
                "rayStartParams": {"num-gpus": str(resolved.worker.gpu), "object-store-memory": store},
                "template": template(WORKER_CONTAINER, resolved.worker),
            }
        ],
    }
    if elastic:
        cluster["enableInTreeAutoscaling"] = True
        cluster["headGroupSpec"]["template"]["spec"]["volumes"].append(api_token_volume())
        # KubeRay adds the autoscaler's container to the head pod with these options.
        cluster["autoscalerOptions"] = {
            "securityContext": container_security_context(),
            "volumeMounts": [api_token_mount()],
        }
    return cluster


def object_store_bytes(shared_memory: str) -> int:
    """Half of /dev/shm. By default Ray takes 30 % of the memory, and uses the disk where /dev/shm is smaller."""
    return max(_MIN_OBJECT_STORE_BYTES, int(quantity_value(shared_memory) / 2))


def _variables(job: Job, attempt: int, resolved: ResolvedJob, settings: Settings) -> list[Json]:
    """The environment variables of the trainer, in all pods of an attempt."""
    url = f"{settings.progress_url}{report_path(job.key.namespace, job.key.name, attempt)}"
    shown = volume_uri(resolved.claim, resolved.out.removeprefix(f"{environment.OUTPUT_PATH}/"))
    return [
        job_digest(job, resolved),
        {"name": environment.OUT, "value": resolved.out},
        {"name": environment.OUT_SHOWN, "value": shown},
        {"name": environment.ATTEMPT, "value": str(attempt)},
        {"name": environment.STORE, "value": resolved.store},
        {"name": environment.PROGRESS_URL, "value": url},
        {"name": environment.PROGRESS_TOKEN_FILE, "value": environment.TOKEN_FILE},
        {"name": environment.PROGRESS_CA_FILE, "value": environment.PROGRESS_CA},
    ]
