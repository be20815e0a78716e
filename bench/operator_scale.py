"""Scalability of the operator, compared with an equivalent kopf operator.

Run `python bench/operator_scale.py [--jobs 2000] [--kopf PYTHON]` with `tests/cluster` on PYTHONPATH. On a real API
server it creates running jobs (each with its RayJob and its status), then starts an operator and measures: seconds
until all jobs are reconciled, the slowest response to a request meanwhile (the latency of the event loop), memory, and
writes during the following minute. With the Python of an environment that has kopf (`pip install kopf`), it also runs
`bench/operator_kopf.py` on the same jobs.
"""

from __future__ import annotations

import argparse
import asyncio
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

from devcluster import ControlPlane, kuberay_crds

from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.observed import read_job, read_runtime
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import Json, Key
from dreambooth_operator.resources import JOBS, RAY_JOBS

ROOT = Path(__file__).resolve().parents[1]
NAMESPACES = 20
HEALTH_PORT = 18081
RUNTIME: Json = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothRuntime",
    "metadata": {"name": "default"},
    "spec": {"image": "trainer:1", "storage": {"claimName": "work"}, "bounds": {"outputs": ["s3://models"]}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--quiet-seconds", type=int, default=60, help="period in which writes are counted")
    parser.add_argument("--kopf", metavar="PYTHON", help="also measure the kopf operator, with this Python")
    given = parser.parse_args()
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds(), ROOT / "manifests" / "crd")
        names = [f"n{number}" for number in range(NAMESPACES)]
        namespaces = [{"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}} for name in names]
        plane.apply(RUNTIME, *namespaces)
        started = time.monotonic()
        asyncio.run(fill(plane, given.jobs))
        print(f"{given.jobs} jobs created in {time.monotonic() - started:.0f} s", flush=True)
        ours = measure(plane, "ours", our_command(plane), our_count, given.jobs, given.quiet_seconds)
        if given.kopf:
            script = ROOT / "bench" / "operator_kopf.py"
            command = [given.kopf, str(script), str(plane.kubeconfig), str(HEALTH_PORT)]
            kopf = measure(plane, "kopf", command, kopf_count, given.jobs, given.quiet_seconds)
            print(
                f"kopf / ours: {kopf[0] / ours[0]:.1f} x the time, {kopf[1] / ours[1]:.1f} x the memory, "
                f"{kopf[2]:.0f} writes against {ours[2]:.0f}"
            )


async def fill(plane: ControlPlane, count: int) -> None:
    """Create running jobs that need no further action."""
    numbers = iter(range(count))
    async with await Api.connect(str(plane.kubeconfig)) as api:
        runtime = read_runtime(RUNTIME)

        async def work() -> None:
            for number in numbers:
                job = read_job(await api.create(JOBS, job_object(number)))
                resolved = resolve(job, runtime, [])
                assert isinstance(resolved, ResolvedJob)
                _, ray_job = attempt_children(job, 1, resolved, Settings())[-1]
                made = await api.create(RAY_JOBS, ray_job)
                running = {"status": {"jobDeploymentStatus": "Running", "jobStatus": "RUNNING"}}
                name = Key(job.key.namespace, ray_job["metadata"]["name"])
                await api.merge(RAY_JOBS, name, running, subresource="status")
                await api.merge(JOBS, job.key, status_object(made), subresource="status")

        await asyncio.gather(*(work() for _ in range(16)))


def job_object(number: int) -> Json:
    return {
        "apiVersion": JOBS.api_version,
        "kind": JOBS.kind,
        "metadata": {"name": f"job-{number}", "namespace": f"n{number % NAMESPACES}"},
        "spec": {
            "subject": {"images": {"uri": f"s3://photos/{number}"}, "class": "dog"},
            "output": {"uri": f"s3://models/{number}"},
        },
    }


def status_object(ray_job: Json) -> Json:
    since = "2026-01-01T00:00:00Z"
    common = {"status": "True", "observedGeneration": 1, "lastTransitionTime": since}
    starting = {"type": "ClusterReady", "reason": "Starting", "message": "The Ray cluster is being created."}
    conditions = [
        {
            "type": "Accepted",
            "reason": "Valid",
            "message": "The spec is valid and within the runtime's bounds.",
            **common,
        },
        {**common, **starting, "status": "False"},
    ]
    status = {
        "phase": "Running", "message": starting["message"], "attempts": 1, "failures": 0,
        "observedGeneration": 1, "activeSeconds": 0,
        "startTime": since, "activeSince": since, "conditions": conditions,
        "rayJobName": ray_job["metadata"]["name"], "rayJobUid": ray_job["metadata"]["uid"],
    }  # fmt: skip
    return {"status": status}


def our_command(plane: ControlPlane) -> list[str]:
    return [
        sys.executable, "-m", "dreambooth_operator", f"--kubeconfig={plane.kubeconfig}", "--namespace=",
        "--host=127.0.0.1", f"--health-port={HEALTH_PORT}", "--progress-port=0", "--log-level=WARNING",
    ]  # fmt: skip


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


def measure(
    plane: ControlPlane, name: str, command: list[str], count: Callable[[], float], jobs: int, quiet_seconds: int
) -> tuple[float, float, float]:
    """Seconds until all jobs are reconciled, resident memory in MiB, and writes from the start to the end."""
    before, started = writes(plane), time.monotonic()
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        try:
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
        finally:
            process.kill()
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
