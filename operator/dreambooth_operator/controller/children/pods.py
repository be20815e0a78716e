"""Pod templates and containers, shared by the RayJob and the erase job."""

from __future__ import annotations

import copy
from typing import Any

from dreambooth_api import environment
from dreambooth_api.runtime import PodResources
from dreambooth_operator.controller.children.claims import share_claims
from dreambooth_operator.controller.children.metadata import child_labels
from dreambooth_operator.controller.children.model_cache import cache_mount, cache_variables, cache_volume
from dreambooth_operator.controller.children.strategic_merge import strategic_merge
from dreambooth_operator.controller.names import attempt_name, base_name, erase_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.controller.settings import AUDIENCE
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import RAY_CONTAINERS, WORKER_CONTAINER

_TOKEN_SECONDS = 3600
_SCRATCH = "/tmp"  # noqa: S108 - a volume
_GRACE_SECONDS = environment.SAVE_SECONDS + 15  # then Ray stops
# An evicted pod ends the attempt.
_ANNOTATIONS = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
_USER = 1000  # user "ray" of the Ray images


def build_container(name: str, resolved: ResolvedJob, resources: PodResources, variables: list[Json]) -> Json:
    """A container with the trainer's image and mounts."""
    runtime = resolved.runtime
    limits: dict[str, str] = {"memory": resources.memory}
    if resources.gpu:
        limits[runtime.pods.gpu_resource] = str(resources.gpu)
    if resources.ephemeral_storage:
        limits["ephemeral-storage"] = resources.ephemeral_storage
    container: Json = {
        "name": name,
        "image": resolved.spec.cluster.image,
        "imagePullPolicy": runtime.image_pull_policy,
        "env": _variables(resolved, resources, variables),
        # CPU has no limit, so that idle cores can be used. KubeRay passes the request to Ray, rounded up.
        "resources": {"requests": {"cpu": resources.cpu, **limits}, "limits": limits},
        "securityContext": container_security_context(),
        "volumeMounts": _mounts(resolved, with_inputs=name in RAY_CONTAINERS),
    }
    if sources := _variable_sources(resolved):
        container["envFrom"] = sources
    if name in RAY_CONTAINERS:
        container["lifecycle"] = {"preStop": {"exec": {"command": list(environment.PRE_STOP_COMMAND)}}}
    return container


def build_pod_template(
    job: Job,
    resolved: ResolvedJob,
    container: Json,
    *,
    attempt: int | None = None,
    restart: str = "",
    patch: Json | None = None,
) -> Json:
    """A pod template of an attempt, or of the erase job if `attempt` is None.

    Args:
        patch: strategic merge patch of the runtime. It is applied last, so that the platform team can change any field.
    """
    name = attempt_name(job, attempt) if attempt else erase_name(job)
    pod: Json = {
        "serviceAccountName": base_name(job),
        "automountServiceAccountToken": False,
        "securityContext": pod_security_context(),
        "containers": [container],
        "volumes": _volumes(resolved, name, with_inputs=attempt is not None),
        **_placement(resolved, is_worker=container["name"] == WORKER_CONTAINER),
    }
    if secrets := resolved.runtime.pods.image_pull_secrets:
        pod["imagePullSecrets"] = [{"name": secret.name} for secret in secrets]
    if priority_class := resolved.spec.run_policy.priority_class_name:
        pod["priorityClassName"] = priority_class
    if restart:
        pod["restartPolicy"] = restart
    if "lifecycle" in container:
        pod["terminationGracePeriodSeconds"] = _GRACE_SECONDS
    if container["name"] == WORKER_CONTAINER:
        # KubeRay's init container waits for the head in a shell. As process 1 of its own namespace it would ignore
        # SIGTERM: a worker deleted meanwhile, and with it the next attempt, would wait for the whole grace period.
        pod["shareProcessNamespace"] = True
    pods = resolved.runtime.pods
    metadata: Json = {"labels": dict(pods.labels), "annotations": {**_ANNOTATIONS, **pods.annotations}}
    changes = patch or {}
    metadata = strategic_merge(metadata, changes.get("metadata") or {})
    metadata["labels"] = {**metadata.get("labels", {}), **child_labels(job, attempt)}
    return {"metadata": metadata, "spec": share_claims(strategic_merge(pod, changes.get("spec") or {}))}


def pod_security_context() -> dict[str, Any]:
    """What the restricted Pod Security Standard requires of a pod, and the group of its volumes."""
    return {
        "runAsNonRoot": True,
        "runAsUser": _USER,
        "fsGroup": _USER,
        # Otherwise kubelet changes the group of every file of the volume at each start.
        "fsGroupChangePolicy": "OnRootMismatch",
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def container_security_context() -> dict[str, Any]:
    """What the restricted Pod Security Standard requires of a container, and a read-only root file system."""
    return {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}}


def _variables(resolved: ResolvedJob, resources: PodResources, variables: list[Json]) -> list[Json]:
    """Each variable once. Those of the runtime replace the defaults, but not `variables`, the trainer's."""
    # The root file system is read-only; Ray, Triton and matplotlib write to HOME and /tmp.
    defaults = [{"name": "HOME", "value": _SCRATCH}, {"name": "RAY_USAGE_STATS_ENABLED", "value": "0"}]
    if not resources.gpu:
        # CUDA base images set "all", which shows the node's GPUs to pods that have not requested any.
        defaults.append({"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"})
    if cache := resolved.runtime.model_cache:
        defaults += cache_variables(cache)
    chosen = [variable.model_dump(by_alias=True, exclude_none=True) for variable in resolved.runtime.pods.env]
    return list({variable["name"]: variable for variable in (*defaults, *chosen, *variables)}.values())


def _variable_sources(resolved: ResolvedJob) -> list[Json]:
    sources = [source.model_dump(by_alias=True, exclude_none=True) for source in resolved.runtime.pods.env_from]
    secret = resolved.runtime.storage.credentials_secret
    return [*sources, {"secretRef": {"name": secret}}] if secret else sources


def _placement(resolved: ResolvedJob, *, is_worker: bool) -> Json:
    """The node selector and tolerations. Pods that need no GPU must not start or occupy nodes with GPUs."""
    source = resolved.spec.cluster if is_worker else resolved.runtime.pods.head
    placement: Json = {}
    if source.node_selector:
        placement["nodeSelector"] = dict(source.node_selector)
    if source.tolerations:
        placement["tolerations"] = [t.model_dump(by_alias=True, exclude_none=True) for t in source.tolerations]
    return placement


def _volumes(resolved: ResolvedJob, config_map: str, *, with_inputs: bool) -> list[Json]:
    """The volumes. Erasing needs no images and models, and must not wait for those that no longer exist."""
    token = {"audience": AUDIENCE, "expirationSeconds": _TOKEN_SECONDS, "path": "token"}
    volumes: list[Json] = [
        {"name": "job", "configMap": {"name": config_map}},
        {"name": "output", "persistentVolumeClaim": {"claimName": resolved.claim}},
        {"name": "progress-token", "projected": {"sources": [{"serviceAccountToken": token}]}},
        {"name": "shm", "emptyDir": {"medium": "Memory", "sizeLimit": resolved.runtime.pods.shared_memory}},
        {"name": "tmp", "emptyDir": {}},
    ]
    if not with_inputs:
        return volumes
    volumes += [{"name": f"images-{index}", **copy.deepcopy(source)} for index, source in enumerate(resolved.images)]
    if cache := resolved.runtime.model_cache:
        volumes.append(cache_volume(cache))
    return volumes


def _mounts(resolved: ResolvedJob, *, with_inputs: bool) -> list[Json]:
    mounts: list[Json] = [
        {"name": "job", "mountPath": environment.JOB_PATH, "readOnly": True},
        {"name": "output", "mountPath": environment.OUTPUT_PATH},
        {"name": "progress-token", "mountPath": environment.TOKEN_PATH, "readOnly": True},
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108 - a volume
        {"name": "tmp", "mountPath": _SCRATCH},
    ]
    if not with_inputs:
        return mounts
    for index in range(len(resolved.images)):
        path = f"{environment.IMAGES_PATH}/{index}"
        mounts.append({"name": f"images-{index}", "mountPath": path, "readOnly": True})
    if cache := resolved.runtime.model_cache:
        mounts.append(cache_mount(cache))
    return mounts
