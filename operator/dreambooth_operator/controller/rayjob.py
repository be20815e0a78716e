"""The children of an attempt, built from values: ServiceAccount, NetworkPolicy, ConfigMap, RayJob.

Nothing of the user's reaches a shell: the entrypoint is a constant, the job goes in as a file, and where
the output goes as an environment variable that the entrypoint quotes. Pods fit the restricted profile.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from dreambooth_api import environment
from dreambooth_api.job import API_VERSION, KIND
from dreambooth_api.runtime import PodResources
from dreambooth_operator.controller.names import attempt_name, base_name, erase_name
from dreambooth_operator.controller.resolve import Resolved
from dreambooth_operator.controller.views import Job
from dreambooth_operator.machinery.resources import (
    CONFIG_MAPS,
    NETWORK_POLICIES,
    SERVICE_ACCOUNTS,
    Json,
    Resource,
)
from dreambooth_operator.resources import ATTEMPT_LABEL, BATCH_JOBS, JOB_LABEL, RAY_JOBS

ENTRYPOINT = f'{" ".join(environment.TRAINER_COMMAND)} run {environment.JOB_FILE} --out "${environment.OUT}"'
AUDIENCE = "dreambooth-progress"
QUEUE_LABEL = "kueue.x-k8s.io/queue-name"
_TOKEN_SECONDS = 3600
# KubeRay's own probe asks after ten seconds and then every five, and a job is submitted when all pods are ready.
_READY = {
    "httpGet": {"path": "/api/healthz", "port": 52365},
    "periodSeconds": 2,
    "timeoutSeconds": 5,
    "failureThreshold": 10,
}
_SCRATCH = "/tmp"  # noqa: S108 - a volume
_USER = 1000  # "ray" in Ray's images


@dataclass(frozen=True, slots=True)
class Settings:
    """What the operator's own deployment decides.

    Attributes:
        progress_url: where trainers report, without a slash at the end.
        head_grace_seconds: how long a head pod may be not ready before its attempt counts as lost.
        pods_ready_seconds: how long the pods of an attempt may take to come, at least, before it gives them back.
        retry_seconds: the pause before the first retry; it doubles up to retry_most_seconds.
    """

    progress_url: str = "http://dreambooth-operator.dreambooth-system.svc:8082"
    head_grace_seconds: float = 120
    pods_ready_seconds: float = 1800
    retry_seconds: float = 10
    retry_most_seconds: float = 360


def attempt_children(job: Job, attempt: int, resolved: Resolved, settings: Settings) -> list[tuple[Resource, Json]]:
    """What an attempt is made of, in the order in which to create it. The RayJob comes last."""
    return [
        (SERVICE_ACCOUNTS, _service_account(job)),
        (NETWORK_POLICIES, _network_policy(job)),
        (CONFIG_MAPS, _config_map(job, attempt_name(job, attempt), resolved)),
        (RAY_JOBS, _ray_job(job, attempt, resolved, settings)),
    ]


def erase_children(job: Job, resolved: Resolved) -> list[tuple[Resource, Json]]:
    """The batch Job that removes what the job made, and its file."""
    name = erase_name(job)
    container = _container("erase", resolved, PodResources(cpu="1", memory="2Gi"), [])
    container["command"] = [*environment.TRAINER_COMMAND, "erase", environment.JOB_FILE, "--out", resolved.out]
    template = _pod_template(job, resolved, container, restart="Never")
    spec = {"backoffLimit": 2, "activeDeadlineSeconds": 3600, "template": template}
    erase: Json = {
        "apiVersion": BATCH_JOBS.api_version,
        "kind": BATCH_JOBS.kind,
        "metadata": _metadata(job, name),
        "spec": spec,
    }
    return [
        (SERVICE_ACCOUNTS, _service_account(job)),
        (CONFIG_MAPS, _config_map(job, name, resolved)),
        (BATCH_JOBS, erase),
    ]


def job_file(job: Job, resolved: Resolved) -> str:
    """The job as the trainer reads it: whole, with mounted paths in place of volumes."""
    metadata = {"name": job.key.name, "namespace": job.key.namespace}
    spec = resolved.spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    whole = {"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec}
    return yaml.safe_dump(whole, sort_keys=False, allow_unicode=True)


def _ray_job(job: Job, attempt: int, resolved: Resolved, settings: Settings) -> Json:
    spec, policy, runtime = resolved.spec, resolved.spec.run_policy, resolved.runtime
    name = attempt_name(job, attempt)
    variables = _variables(job, attempt, resolved, settings)

    def pod(container_name: str, resources: PodResources, *, automount: bool = False, restart: str = "") -> Json:
        container = _container(container_name, resolved, resources, variables)
        container["readinessProbe"] = _READY
        return _pod_template(job, resolved, container, attempt=attempt, automount=automount, restart=restart)

    elastic, workers = spec.cluster.elastic, spec.cluster.workers
    least, most = (elastic.min_workers, elastic.max_workers) if elastic else (workers, workers)
    cluster: Json = {
        "rayVersion": runtime.ray_version,
        # KubeRay makes a Secret for each cluster: without its token Ray runs nothing, for whoever can reach it.
        "authOptions": {"mode": "token"},
        "headGroupSpec": {
            # The head drives; Ray places no work on it.
            "rayStartParams": {"num-cpus": "0", "num-gpus": "0"},
            # A head restarted in place would be given the job once more.
            "template": pod("ray-head", runtime.pods.head, automount=elastic is not None, restart="Never"),
        },
        "workerGroupSpecs": [
            {
                "groupName": "workers",
                "replicas": min(max(workers, least), most),
                "minReplicas": least,
                "maxReplicas": most,
                "rayStartParams": {},
                "template": pod("ray-worker", resolved.worker),
            }
        ],
    }
    if elastic:
        cluster["enableInTreeAutoscaling"] = True
        cluster["autoscalerOptions"] = {"securityContext": _container_security()}
    metadata = _metadata(job, name, attempt=attempt)
    # KubeRay copies it to the RayCluster: a head that died stays dead, instead of running the job once more.
    metadata["annotations"] = {"ray.io/disable-provisioned-head-restart": "true"}
    if policy.queue_name:
        metadata["labels"][QUEUE_LABEL] = policy.queue_name
    return {
        "apiVersion": RAY_JOBS.api_version,
        "kind": RAY_JOBS.kind,
        "metadata": metadata,
        "spec": {
            "entrypoint": ENTRYPOINT,
            "submissionMode": "HTTPMode",
            "backoffLimit": 0,  # an attempt is ours to count
            "shutdownAfterJobFinishes": True,
            # With a queue it waits to be admitted; from then on the field is the queue's, never ours.
            "suspend": policy.queue_name is not None,
            "rayClusterSpec": cluster,
        },
    }


def _variables(job: Job, attempt: int, resolved: Resolved, settings: Settings) -> list[Json]:
    """The environment of the trainer in all pods of an attempt."""
    url = f"{settings.progress_url}/v1/jobs/{job.key.namespace}/{job.key.name}/attempts/{attempt}"
    shown = f"pvc://{resolved.claim}{resolved.out.removeprefix(environment.OUTPUT_PATH)}"
    return [
        {"name": environment.OUT, "value": resolved.out},
        {"name": environment.OUT_SHOWN, "value": shown},
        {"name": environment.STORE, "value": resolved.store},
        {"name": environment.PROGRESS_URL, "value": url},
        {"name": environment.PROGRESS_TOKEN_FILE, "value": environment.TOKEN_FILE},
    ]


def _container(name: str, resolved: Resolved, resources: PodResources, variables: list[Json]) -> Json:
    runtime = resolved.runtime
    limits: dict[str, str] = {"memory": resources.memory}
    if resources.gpu:
        limits[runtime.pods.gpu_resource] = str(resources.gpu)
    container: Json = {
        "name": name,
        "image": resolved.spec.cluster.image,
        "imagePullPolicy": runtime.image_pull_policy,
        # The root file system is read-only; Ray, Triton and matplotlib keep their files below HOME and /tmp.
        "env": [{"name": "HOME", "value": _SCRATCH}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}, *variables],
        # No limit on CPU: an idle core is better used, and KubeRay tells Ray what was asked for, rounded up.
        "resources": {"requests": {"cpu": resources.cpu, **limits}, "limits": limits},
        "securityContext": _container_security(),
        "volumeMounts": _mounts(resolved),
    }
    if secret := runtime.storage.credentials_secret:
        container["envFrom"] = [{"secretRef": {"name": secret}}]
    return container


def _pod_template(
    job: Job,
    resolved: Resolved,
    container: Json,
    *,
    attempt: int | None = None,
    automount: bool = False,
    restart: str = "",
) -> Json:
    spec, name = resolved.spec, attempt_name(job, attempt) if attempt else erase_name(job)
    pod: Json = {
        "serviceAccountName": base_name(job),
        "automountServiceAccountToken": automount,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "fsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": _volumes(resolved, name),
    }
    if spec.cluster.node_selector:
        pod["nodeSelector"] = dict(spec.cluster.node_selector)
    if spec.cluster.tolerations:
        pod["tolerations"] = [
            toleration.model_dump(by_alias=True, exclude_none=True) for toleration in spec.cluster.tolerations
        ]
    if spec.run_policy.priority_class_name:
        pod["priorityClassName"] = spec.run_policy.priority_class_name
    if restart:
        pod["restartPolicy"] = restart
    return {"metadata": {"labels": _labels(job, attempt)}, "spec": pod}


def _volumes(resolved: Resolved, config_map: str) -> list[Json]:
    token = {"audience": AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    volumes: list[Json] = [
        {"name": "job", "configMap": {"name": config_map}},
        {"name": "output", "persistentVolumeClaim": {"claimName": resolved.claim}},
        {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resolved.runtime.pods.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if resolved.images:
        volumes.append({"name": "images", **resolved.images})
    return volumes


def _mounts(resolved: Resolved) -> list[Json]:
    mounts: list[Json] = [
        {"name": "job", "mountPath": environment.JOB_PATH, "readOnly": True},
        {"name": "output", "mountPath": environment.OUTPUT_PATH},
        {"name": "progress-token", "mountPath": environment.TOKEN_PATH, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a volume
        {"name": "tmp", "mountPath": _SCRATCH},
    ]
    if resolved.images:
        mounts.append({"name": "images", "mountPath": environment.IMAGES_PATH, "readOnly": True})
    return mounts


def _config_map(job: Job, name: str, resolved: Resolved) -> Json:
    return {
        "apiVersion": CONFIG_MAPS.api_version,
        "kind": CONFIG_MAPS.kind,
        "metadata": _metadata(job, name),
        "immutable": True,
        "data": {environment.JOB_FILE_NAME: job_file(job, resolved)},
    }


def _service_account(job: Job) -> Json:
    """An identity without any right: its only use is the token for the progress endpoint."""
    return {
        "apiVersion": SERVICE_ACCOUNTS.api_version,
        "kind": SERVICE_ACCOUNTS.kind,
        "metadata": _metadata(job, base_name(job)),
        "automountServiceAccountToken": False,
    }


def _network_policy(job: Job) -> Json:
    """Pods of a job talk to each other; KubeRay reaches the dashboard; nobody else comes in."""
    kuberay = {"namespaceSelector": {}, "podSelector": {"matchLabels": {"app.kubernetes.io/name": "kuberay-operator"}}}
    mine = {"matchLabels": {JOB_LABEL: job.key.name}}
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": _metadata(job, base_name(job)),
        "spec": {
            "podSelector": mine,
            "policyTypes": ["Ingress"],
            "ingress": [
                {"from": [{"podSelector": mine}]},
                {"from": [kuberay], "ports": [{"port": 8265, "protocol": "TCP"}]},
            ],
        },
    }


def _metadata(job: Job, name: str, *, attempt: int | None = None) -> Json:
    owner = {key: job.reference[key] for key in ("apiVersion", "kind", "name", "uid")}
    return {
        "name": name,
        "namespace": job.key.namespace,
        "labels": _labels(job, attempt),
        "ownerReferences": [{**owner, "controller": True}],
    }


def _labels(job: Job, attempt: int | None) -> dict[str, str]:
    labels = {JOB_LABEL: job.key.name, "app.kubernetes.io/managed-by": "dreambooth-operator"}
    return {**labels, ATTEMPT_LABEL: str(attempt)} if attempt else labels


def _container_security() -> dict[str, Any]:
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}
