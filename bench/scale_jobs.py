"""The jobs of `operator_scale.py`: running jobs in any number, and new ones.

One job is created through the API server, with its RayJob, RayCluster, head and worker pod. The others are copies with
names and uids of their own that are written directly into etcd, in batches. Through the API server, which validates
each object and takes ten requests per job, 10,000 jobs take seven minutes of two cores.
"""

from __future__ import annotations

import asyncio
import base64
import json
import time
import uuid
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import aiohttp
from devcluster import ControlPlane, kuberay_crds

from dreambooth_operator.app import CA_SECRET
from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.decide import decide
from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import (
    Job,
    Observed,
    read_job,
    read_ray_cluster,
    read_ray_job,
    read_runtime,
)
from dreambooth_operator.controller.observed_pods import read_pod
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import PODS, Json, Key, Resource, key_of
from dreambooth_operator.resources import JOBS, RAY_CLUSTERS, RAY_JOBS, RUNTIME_FINALIZER, RUNTIMES

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = 20
BATCH = 20  # jobs per transaction: etcd accepts 128 objects and 1.5 MiB
RUNTIME: Json = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothRuntime",
    "metadata": {"name": "default", "finalizers": [RUNTIME_FINALIZER]},
    "spec": {"image": "trainer:1", "storage": {"claimName": "work"}, "bounds": {"outputs": ["s3://models"]}},
}
SINCE_TIME = datetime.now(UTC).replace(microsecond=0)
SINCE = SINCE_TIME.isoformat().replace("+00:00", "Z")


def prepare(plane: ControlPlane) -> None:
    """Namespaces, a runtime, and an account for the operator."""
    plane.install_crds(kuberay_crds(), ROOT / "manifests" / "crd")
    names = [namespace_of(number) for number in range(NAMESPACES)]
    system = Settings().operator_namespace
    namespaces = ({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (*names, system))
    plane.apply(*namespaces)
    accounts = [
        {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "default", "namespace": name}}
        for name in (*names, "default")
    ]
    binding: Json = {
        "apiVersion": "rbac.authorization.k8s.io/v1",
        "kind": "ClusterRoleBinding",
        "metadata": {"name": "operator"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": [{"kind": "ServiceAccount", "name": "default", "namespace": "default"}],
    }
    secret: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CA_SECRET, "namespace": system}}
    plane.apply(RUNTIME, binding, secret, *accounts)


def fill(plane: ControlPlane, count: int) -> None:
    """Create running jobs that need no further action."""
    originals = asyncio.run(create_running_job(plane))
    started = time.monotonic()
    asyncio.run(copy_jobs(plane, originals, range(1, count), started))
    print(f"{count} jobs created in {time.monotonic() - started:.0f} s", flush=True)
    asyncio.run(wait_for_caches(plane))
    print(f"the API server has read them after {time.monotonic() - started:.0f} s", flush=True)


async def wait_for_caches(plane: ControlPlane) -> None:
    """Wait until the caches of the API server contain what was written into etcd. Otherwise, the first list waits."""
    async with await Api.connect(str(plane.kubeconfig)) as api:
        for resource in (JOBS, RAY_JOBS, RAY_CLUSTERS, PODS):
            seconds = 1.0
            while seconds > 0.1:
                before = time.monotonic()
                await api.request("GET", resource.path(), query={"limit": "1"})
                seconds = time.monotonic() - before


async def create_running_job(plane: ControlPlane) -> list[tuple[Resource, Json]]:
    """A running job and its children, through the API server."""
    async with await Api.connect(str(plane.kubeconfig)) as api:
        job = read_job(await api.create(JOBS, job_object(name_of(0), 0)))
        runtime = read_runtime(await api.get(RUNTIMES, Key("", RUNTIME["metadata"]["name"])))
        resolved = resolve(job, runtime, [])
        assert isinstance(resolved, ResolvedJob)
        _, ray_job = attempt_children(job, 1, resolved, Settings())[-1]
        namespace, name = job.key.namespace, ray_job["metadata"]["name"]
        await api.create(RAY_JOBS, ray_job)
        ray_status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": name}
        made = await api.merge(RAY_JOBS, Key(namespace, name), {"status": ray_status}, subresource="status")
        await api.create(RAY_CLUSTERS, cluster_object(made))
        cluster = await api.merge(RAY_CLUSTERS, Key(namespace, name), cluster_status(name), subresource="status")
        pods: list[Json] = []
        for group in ("head", "worker"):
            pod = await api.create(PODS, pod_object(made, group))
            pods.append(await api.merge(PODS, key_of(pod), pod_status(), subresource="status"))
        observed = Observed(
            (read_ray_job(made),), (read_ray_cluster(cluster),), pods=tuple(read_pod(pod) for pod in pods)
        )
        running = await api.merge(JOBS, job.key, steady_status(job, resolved, observed), subresource="status")
    return [(JOBS, running), (RAY_JOBS, made), (RAY_CLUSTERS, cluster), *((PODS, pod) for pod in pods)]


async def copy_jobs(
    plane: ControlPlane, originals: list[tuple[Resource, Json]], numbers: range, started: float
) -> None:
    """Write copies of a job and its children into etcd."""
    entries = [entry(resource, obj) for resource, obj in originals]
    async with aiohttp.ClientSession(plane.etcd_url, raise_for_status=True) as session:
        for first in range(numbers.start, numbers.stop, BATCH):
            puts: list[Json] = []
            for number in numbers[first - numbers.start :][:BATCH]:
                changes = changes_of(originals, number)
                puts += [
                    {"requestPut": {"key": changed(key, changes), "value": changed(text, changes)}}
                    for key, text in entries
                ]
            async with session.post("/v3/kv/txn", json={"success": puts}) as response:
                assert (await response.json())["succeeded"]
            if first // 1000 != (first + BATCH) // 1000:
                print(f"  {first + BATCH} jobs after {time.monotonic() - started:.0f} s", flush=True)


def entry(resource: Resource, obj: Json) -> tuple[str, str]:
    """The key of an object in etcd, and its JSON there, which has no resource version."""
    metadata = {name: value for name, value in obj["metadata"].items() if name != "resourceVersion"}
    group = f"{resource.group}/" if resource.group else ""
    key = f"/registry/{group}{resource.plural}/{metadata['namespace']}/{metadata['name']}"
    return key, json.dumps({**obj, "metadata": metadata})


def changes_of(originals: list[tuple[Resource, Json]], number: int) -> dict[str, str]:
    """What to replace in the objects of job 0, so that they become those of job `number`."""
    job = read_job(originals[0][1])
    uids = {obj["metadata"]["uid"]: str(uuid.uuid4()) for _, obj in originals}
    copy = replace(job, uid=uids[job.uid], key=Key(namespace_of(number), name_of(number)))
    names = {name_of(0): name_of(number), namespace_of(0): namespace_of(number)}
    return {base_name(job): base_name(copy), **names, **uids}


def changed(text: str, changes: dict[str, str]) -> str:
    """`text` with the changes, in base64."""
    for old, new in changes.items():
        text = text.replace(old, new)
    return base64.b64encode(text.encode()).decode()


def name_of(number: int) -> str:
    return f"job-{number:06}"


def namespace_of(number: int) -> str:
    return f"tenant-{number % NAMESPACES:02}"


def cluster_object(ray_job: Json) -> Json:
    """The RayCluster that KubeRay makes of a RayJob."""
    metadata = ray_job["metadata"]
    labels = {**metadata["labels"], "ray.io/originated-from-cr-name": metadata["name"]}
    return {
        "apiVersion": RAY_CLUSTERS.api_version,
        "kind": RAY_CLUSTERS.kind,
        "metadata": {"name": metadata["name"], "namespace": metadata["namespace"], "labels": labels},
        "spec": ray_job["spec"]["rayClusterSpec"],
    }


def cluster_status(name: str) -> Json:
    kinds = {"HeadPodReady": "HeadPodRunningAndReady", "RayClusterProvisioned": "AllPodRunningAndReadyFirstTime"}
    conditions = [
        {"type": kind, "status": "True", "reason": reason, "message": "", "lastTransitionTime": SINCE}
        for kind, reason in kinds.items()
    ]
    ready = {"readyWorkerReplicas": 1, "desiredWorkerReplicas": 1, "head": {"podName": f"{name}-head"}}
    return {"status": {"state": "ready", "conditions": conditions, **ready}}


def pod_object(ray_job: Json, group: str) -> Json:
    """A pod of that cluster."""
    metadata, cluster = ray_job["metadata"], ray_job["spec"]["rayClusterSpec"]
    template = cluster["headGroupSpec" if group == "head" else "workerGroupSpecs"]
    template = (template if group == "head" else template[0])["template"]
    labels = {**metadata["labels"], **template["metadata"]["labels"], "ray.io/node-type": group}
    spec = {**template["spec"], "nodeName": "node-1", "serviceAccountName": "default"}
    name = {"name": f"{metadata['name']}-{group}", "namespace": metadata["namespace"]}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {**name, "labels": labels}, "spec": spec}


def pod_status() -> Json:
    kinds = ("Initialized", "Ready", "ContainersReady", "PodScheduled")
    conditions = [{"type": kind, "status": "True", "lastTransitionTime": SINCE} for kind in kinds]
    return {"status": {"phase": "Running", "hostIP": "10.0.0.1", "podIP": "10.0.0.2", "conditions": conditions}}


def job_object(name: str, number: int) -> Json:
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {"name": name, "namespace": namespace_of(number)},
        "spec": {
            "subject": {"images": {"uri": f"s3://photos/{name}"}, "class": "dog"},
            "output": {"uri": f"s3://models/{name}"},
        },
    }


def steady_status(job: Job, resolved: ResolvedJob, observed: Observed) -> Json:
    """The status that the operator gives a running job, from which no further write follows."""
    found = Observed()  # until the first attempt is open
    while True:
        decision = decide(job, resolved, found, SINCE_TIME, Settings())
        writes = [action for action in decision.actions if isinstance(action, WriteStatus)]
        if not writes:
            return {"status": job.status.model_dump(mode="json", by_alias=True, exclude_none=True)}
        job, found = replace(job, status=writes[0].status), observed
