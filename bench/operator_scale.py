"""Scalability of the operator, with the target beside each number, compared with an equivalent kopf operator.

Run `python bench/operator_scale.py [--jobs 10000] [--kopf PYTHON]` with `tests/cluster` on PYTHONPATH. On a real API
server it creates running jobs, each with its RayJob, RayCluster, head and worker pod, then starts an operator with the
credentials of a pod and measures:

- adoption: seconds until all jobs are reconciled, the slowest response to a request meanwhile (the latency of the event
  loop), memory, and writes until then and during the following minute;
- applies: how soon each of many jobs, which are created at a constant rate, has its RayJob.

The API server, etcd and this program share the machine with the operator. With the Python of an environment that has
kopf (`pip install kopf`), it also runs `bench/operator_kopf.py` on the same jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

from devcluster import ControlPlane, kuberay_crds

from dreambooth_api.status import Phase
from dreambooth_operator.app import CA_SECRET
from dreambooth_operator.controller.actions import WriteStatus
from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.decide import decide
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
from dreambooth_operator.machinery.resources import PODS, Json, Key
from dreambooth_operator.resources import JOBS, RAY_CLUSTERS, RAY_JOBS, RUNTIME_FINALIZER

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = 20
HEALTH_PORT = 18081
CONCURRENCY = 16
RUNTIME: Json = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothRuntime",
    "metadata": {"name": "default", "finalizers": [RUNTIME_FINALIZER]},
    "spec": {"image": "trainer:1", "storage": {"claimName": "work"}, "bounds": {"outputs": ["s3://models"]}},
}
SYSTEM = Settings().operator_namespace
SINCE_TIME = datetime.now(UTC).replace(microsecond=0)
SINCE = SINCE_TIME.isoformat().replace("+00:00", "Z")
MAX_ADOPT_SECONDS, MAX_MIB = 5, 95
MIN_RAY_JOBS_PER_SECOND, MAX_P99_SECONDS = 100, 2
# The operator as in a pod: the token and the CA certificate of a service account, in the folder of the first argument.
IN_CLUSTER = """
import pathlib, sys
from dreambooth_operator.machinery import connection
connection._ACCOUNT = pathlib.Path(sys.argv.pop(1))
from dreambooth_operator.app import main
sys.exit(main())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000, help="running jobs to adopt")
    parser.add_argument("--applies", type=int, default=1000, help="jobs to create while the operator runs")
    parser.add_argument("--per-second", type=float, default=MIN_RAY_JOBS_PER_SECOND, help="rate of these creations")
    parser.add_argument("--quiet-seconds", type=int, default=60, help="period in which writes are counted")
    parser.add_argument("--kopf", metavar="PYTHON", help="also measure the kopf operator, with this Python")
    given = parser.parse_args()
    with ControlPlane() as plane:
        prepare(plane)
        started = time.monotonic()
        asyncio.run(fill(plane, given.jobs))
        print(f"{given.jobs} jobs created in {time.monotonic() - started:.0f} s", flush=True)
        before = writes(plane)
        with operator(plane) as process:
            ours = adopt(plane, "ours", process, our_count, given.jobs, given.quiet_seconds, before)
            applied = asyncio.run(apply_jobs(plane, given.applies, given.per_second))
        report(ours, applied)
        if given.kopf:
            script = ROOT / "bench" / "operator_kopf.py"
            command = [given.kopf, str(script), str(plane.kubeconfig), str(HEALTH_PORT)]
            before = writes(plane)
            with running(command) as process:
                kopf = adopt(plane, "kopf", process, kopf_count, given.jobs, given.quiet_seconds, before)
            print(
                f"kopf / ours: {kopf[0] / ours[0]:.1f} x the time, {kopf[1] / ours[1]:.1f} x the memory, "
                f"{kopf[2]:.0f} writes against {ours[2]:.0f}"
            )


def report(adopted: tuple[float, float, float], applied: tuple[float, float, float]) -> None:
    """Print each number beside its target. A ratio above 1 misses the target."""
    rows = (
        ("adoption, s", adopted[0], MAX_ADOPT_SECONDS, adopted[0] / MAX_ADOPT_SECONDS),
        ("memory, MiB", adopted[1], MAX_MIB, adopted[1] / MAX_MIB),
        ("writes", adopted[2], 0, adopted[2]),
        ("RayJobs / s", applied[0], MIN_RAY_JOBS_PER_SECOND, MIN_RAY_JOBS_PER_SECOND / applied[0]),
        ("apply to RayJob, p99, s", applied[2], MAX_P99_SECONDS, applied[2] / MAX_P99_SECONDS),
    )
    print(f"{'':<26}{'measured':>10}{'target':>10}{'ratio':>8}")
    for name, measured, target, ratio in rows:
        print(f"{name:<26}{measured:>10.2f}{target:>10}{ratio:>8.2f}", flush=True)


def prepare(plane: ControlPlane) -> None:
    """Namespaces, a runtime, and an account for the operator."""
    plane.install_crds(kuberay_crds(), ROOT / "manifests" / "crd")
    names = [f"n{number}" for number in range(NAMESPACES)]
    namespaces = ({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in (*names, SYSTEM))
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
    secret: Json = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": CA_SECRET, "namespace": SYSTEM}}
    plane.apply(RUNTIME, binding, secret, *accounts)


async def concurrently(count: int, work: Callable[[int], Awaitable[None]]) -> None:
    """Call `work` with each number below `count`."""
    numbers = iter(range(count))

    async def worker() -> None:
        for number in numbers:
            await work(number)

    await asyncio.gather(*(worker() for _ in range(CONCURRENCY)))


async def fill(plane: ControlPlane, count: int) -> None:
    """Create running jobs that need no further action."""
    async with await Api.connect(str(plane.kubeconfig)) as api:
        runtime = read_runtime(RUNTIME)

        async def create(number: int) -> None:
            job = read_job(await api.create(JOBS, job_object(f"job-{number}", number)))
            resolved = resolve(job, runtime, [])
            assert isinstance(resolved, ResolvedJob)
            _, ray_job = attempt_children(job, 1, resolved, Settings())[-1]
            namespace, name = job.key.namespace, ray_job["metadata"]["name"]
            made = await api.create(RAY_JOBS, ray_job)
            ray_status = {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING", "rayClusterName": name}
            made = await api.merge(RAY_JOBS, Key(namespace, name), {"status": ray_status}, subresource="status")
            await api.create(RAY_CLUSTERS, cluster_object(made))
            cluster = await api.merge(RAY_CLUSTERS, Key(namespace, name), cluster_status(name), subresource="status")
            pods: list[Json] = []
            for group in ("head", "worker"):
                pod = pod_object(made, group)
                await api.create(PODS, pod)
                key = Key(namespace, pod["metadata"]["name"])
                pods.append(await api.merge(PODS, key, pod_status(), subresource="status"))
            observed = Observed(
                (read_ray_job(made),), (read_ray_cluster(cluster),), pods=tuple(read_pod(pod) for pod in pods)
            )
            await api.merge(JOBS, job.key, steady_status(job, resolved, observed), subresource="status")

        await concurrently(count, create)


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
        "metadata": {"name": name, "namespace": f"n{number % NAMESPACES}"},
        "spec": {
            "subject": {"images": {"uri": f"s3://photos/{number}"}, "class": "dog"},
            "output": {"uri": f"s3://models/{number}"},
        },
    }


def steady_status(job: Job, resolved: ResolvedJob, observed: Observed) -> Json:
    """The status that the operator gives a running job, from which no further write follows."""
    status = job.status.model_copy(update={"phase": Phase.STARTING, "attempts": 1, "start_time": SINCE_TIME})
    status = status.model_copy(update={"ray_job_name": observed.ray_jobs[0].name})
    while True:
        job = replace(job, status=status, finalizers=())
        decision = decide(job, resolved, observed, SINCE_TIME, Settings())
        writes = [action for action in decision.actions if isinstance(action, WriteStatus)]
        if not writes:
            return {"status": status.model_dump(mode="json", by_alias=True, exclude_none=True)}
        status = writes[0].status


@contextmanager
def running(command: list[str], env: dict[str, str] | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that is killed at the end."""
    with subprocess.Popen(command, stderr=subprocess.DEVNULL, env=env) as process:
        try:
            yield process
        finally:
            process.kill()


@contextmanager
def operator(plane: ControlPlane) -> Iterator[subprocess.Popen[bytes]]:
    """The operator, with the credentials of a pod."""
    account = plane.folder / "account"
    account.mkdir(exist_ok=True)
    (account / "ca.crt").write_bytes(plane.authority.ca.read_bytes())
    (account / "token").write_text(plane.kubectl("create", "token", "default", "-n", "default", "--duration=8h"))
    url = urlsplit(plane.url)
    env = {**os.environ, "KUBERNETES_SERVICE_HOST": str(url.hostname), "KUBERNETES_SERVICE_PORT": str(url.port)}
    command = [
        sys.executable, "-c", IN_CLUSTER, str(account), "--namespace=", "--host=127.0.0.1",
        f"--health-port={HEALTH_PORT}", "--progress-port=0", "--log-level=WARNING",
    ]  # fmt: skip
    with running(command, {**env, "HOME": str(plane.folder), "KUBECONFIG": ""}) as process:
        yield process


async def apply_jobs(plane: ControlPlane, count: int, per_second: float) -> tuple[float, float, float]:
    """RayJobs per second, and the median and the 99th percentile of the seconds from a job's creation to its RayJob."""
    created, seconds = dict[str, float](), dict[str, float]()
    async with await Api.connect(str(plane.kubeconfig)) as api:
        watching = asyncio.create_task(watch_ray_jobs(api, created, seconds))
        await asyncio.sleep(1)
        started = time.monotonic()

        async def create(number: int) -> None:
            await asyncio.sleep(started + number / per_second - time.monotonic())
            name = f"new-{number}"
            created[name] = time.monotonic()
            await api.create(JOBS, job_object(name, number))

        await concurrently(count, create)
        while len(seconds) < count:
            await asyncio.sleep(0.01)
        total = time.monotonic() - started
        watching.cancel()
    median, p99 = statistics.median(seconds.values()), statistics.quantiles(seconds.values(), n=100)[98]
    print(f"{count} applies: {count / total:.0f} RayJobs/s, from apply to RayJob {median:.2f} s, p99 {p99:.2f} s")
    return count / total, median, p99


async def watch_ray_jobs(api: Api, created: dict[str, float], seconds: dict[str, float]) -> None:
    """Record how long after its job each RayJob was created."""
    listed = await api.request("GET", RAY_JOBS.path(), query={"limit": "1"})
    query = {"watch": "true", "resourceVersion": listed["metadata"]["resourceVersion"]}
    async for line in api.lines(RAY_JOBS.path(), query):
        event = json.loads(line)
        name = event["object"]["metadata"]["labels"]["dreambooth.dev/job"]
        if event["type"] == "ADDED" and name in created:
            seconds[name] = time.monotonic() - created[name]


def our_count() -> float:
    found = re.findall(r'^dreambooth_reconciles_total\{result="ok"\} (\S+)', fetch("/metrics"), re.MULTILINE)
    return float(found[0]) if found else 0


def kopf_count() -> float:
    return float(fetch("/") or 0)


def fetch(path: str) -> str:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{HEALTH_PORT}{path}", timeout=10) as response:
            return response.read().decode()
    except OSError:
        return ""


def adopt(
    plane: ControlPlane,
    name: str,
    process: subprocess.Popen[bytes],
    count: Callable[[], float],
    jobs: int,
    quiet_seconds: int,
    before: float,
) -> tuple[float, float, float]:
    """Seconds until all jobs are reconciled, resident memory in MiB, and writes from the start to the end.

    `process` has just been started; `before` is the number of writes before that.
    """
    started = time.monotonic()
    done, slowest_seconds = 0.0, 0.0
    while done < jobs:
        assert process.poll() is None, f"{name} exited"
        requested = time.monotonic()
        done = count()
        if done:  # from now on the response time includes the latency of the event loop
            slowest_seconds = max(slowest_seconds, time.monotonic() - requested)
        time.sleep(0.05)
    seconds = time.monotonic() - started
    adopted = writes(plane)
    time.sleep(quiet_seconds)
    memory, quiet = resident_mib(process.pid), writes(plane) - adopted
    print(
        f"{name}: {jobs} jobs reconciled in {seconds:.1f} s, {memory:.0f} MiB, "
        f"{adopted - before:.0f} writes to adopt them, {quiet:.0f} in {quiet_seconds} s after, "
        f"slowest response meanwhile {slowest_seconds * 1000:.0f} ms",
        flush=True,
    )
    return seconds, memory, adopted - before + quiet


def writes(plane: ControlPlane) -> float:
    """Writes to jobs and RayJobs that the API server has counted."""
    lines = plane.kubectl("get", "--raw", "/metrics").splitlines()
    return sum(
        float(line.rpartition(" ")[2])
        for line in lines
        if line.startswith("apiserver_request_total{")
        and re.search(r'group="(dreambooth.dev|ray.io)"', line)
        and re.search(r'verb="(PATCH|APPLY|POST|PUT|DELETE)"', line)
    )


def resident_mib(pid: int) -> float:
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"VmRSS:\s+(\d+) kB", status)
    assert found
    return int(found[1]) / 1024


if __name__ == "__main__":
    main()
