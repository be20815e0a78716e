"""A fake kubelet and a fake Ray dashboard, for tests without a node.

The API server, its controllers and KubeRay are real. `FakeRay` writes the status that a kubelet would write, and
responds to the requests that KubeRay sends to the dashboard, which reach it through the service proxy of the API
server. It records all runs, so that tests can check that nothing ran twice.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest
from aiohttp import web
from devcluster import ControlPlane

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key, Resource, key_of
from dreambooth_operator.resources import JOB_LABEL

PODS = Resource("", "v1", "pods", "Pod")
SERVICES = Resource("", "v1", "services", "Service")
ENDPOINTS = Resource("", "v1", "endpoints", "Endpoints")
PORT = 8265


@dataclass
class Run:
    """One submission of a Ray job, and its outcome."""

    ray_job: str
    namespace: str
    entrypoint: str
    started: float
    status: str = "RUNNING"
    message: str = ""
    ended: float | None = None


@dataclass
class FakeRay:
    """The dashboard. A run continues until `finish` is called, or until `autopilot` ends it."""

    address: str
    runs: dict[str, Run] = field(default_factory=dict)
    endpoints: dict[Key, str] = field(default_factory=dict)
    without_workers: set[str] = field(default_factory=set)  # namespaces whose worker pods never become ready
    autopilot: random.Random | None = None  # ends runs at random

    def of(self, job: str) -> list[Run]:
        """The runs of a DreamBoothJob, in order. Its RayJobs are named dbj-<job>-..."""
        return [run for run in self.runs.values() if run.ray_job.startswith(f"dbj-{job}-")]

    def latest(self, job: str) -> Run | None:
        return next(iter(reversed(self.of(job))), None)

    def finish(self, run: Run, status: str = "SUCCEEDED", *, exit_code: int = 1) -> None:
        run.status, run.ended = status, time.time()
        if status == "FAILED":
            run.message = f"Job entrypoint command failed with exit code {exit_code}, last available logs: boom"

    # --- the dashboard

    def app(self) -> web.Application:
        app = web.Application()
        app.add_routes(
            [
                web.get("/api/jobs/{id}", self._get),
                web.post("/api/jobs/", self._submit),
                web.post("/api/jobs/{id}/stop", self._stop),
            ]
        )
        return app

    async def _get(self, request: web.Request) -> web.Response:
        run = self.runs.get(request.match_info["id"])
        if run is None:
            return web.json_response({}, status=404)
        if self.autopilot and run.status == "RUNNING" and time.time() - run.started > 2:
            chance = self.autopilot.random()
            if chance < 0.4:
                self.finish(run)
            elif chance < 0.6:
                self.finish(run, "FAILED")
        return web.json_response({"status": run.status, "message": run.message, "submission_id": run.ray_job})

    async def _submit(self, request: web.Request) -> web.Response:
        assert request.headers.get("x-ray-authorization", "").startswith("Bearer "), "Ray would reject this request"
        body = json.loads(await request.text())
        identity = body["submission_id"]
        assert identity not in self.runs, "KubeRay submitted twice"
        name = identity.rpartition("-")[0]
        self.runs[identity] = Run(name, "", body["entrypoint"], time.time())
        return web.json_response({"job_id": identity, "submission_id": identity})

    async def _stop(self, request: web.Request) -> web.Response:
        run = self.runs.get(request.match_info["id"])
        if run and run.status == "RUNNING":
            self.finish(run, "STOPPED")
        return web.json_response({"stopped": True})


async def _run_kubelet(api: Api, ray: FakeRay, stop: threading.Event) -> None:
    """Make all pods of jobs ready, and end the runs whose head pod is gone."""
    while not stop.is_set():
        with contextlib.suppress(ApiError, *CONNECTION_ERRORS):
            pods = await api.request("GET", PODS.path(), query={"labelSelector": f"{JOB_LABEL},ray.io/cluster"})
            heads: dict[str, Json] = {}
            for pod in pods["items"]:
                if pod["metadata"]["labels"].get("ray.io/node-type") == "head":
                    heads[pod["metadata"]["labels"]["ray.io/cluster"]] = pod
                worker = pod["metadata"]["labels"].get("ray.io/node-type") == "worker"
                if worker and pod["metadata"]["namespace"] in ray.without_workers:
                    continue
                if not pod.get("status", {}).get("podIP"):
                    await api.merge(PODS, key_of(pod), {"status": _ready(pod, ray.address)}, subresource="status")
            await _update_endpoints(api, ray, heads)
            for run in ray.runs.values():
                if run.ended is None and not any(cluster.startswith(run.ray_job) for cluster in heads):
                    run.ended = time.time()
        await asyncio.sleep(0.3)


async def _update_endpoints(api: Api, ray: FakeRay, heads: dict[str, Json]) -> None:
    """Point the head services of clusters that have a head pod to the dashboard."""
    services = await api.request("GET", SERVICES.path(), query={"labelSelector": "ray.io/node-type=head"})
    for service in services["items"]:
        key = key_of(service)
        head = heads.get(service["metadata"]["labels"].get("ray.io/cluster", ""))
        if head is None:
            if ray.endpoints.pop(key, None):
                await api.delete(ENDPOINTS, key)
        elif ray.endpoints.get(key) != head["metadata"]["name"]:
            # The API server proxies only to addresses that refer to a pod.
            target = {"kind": "Pod", "name": head["metadata"]["name"], "namespace": key.namespace}
            ports = [{"name": port["name"], "port": port["port"]} for port in service["spec"]["ports"]]
            subset = {"addresses": [{"ip": ray.address, "targetRef": target}], "ports": ports}
            metadata = {"name": key.name, "namespace": key.namespace}
            obj = {"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata, "subsets": [subset]}
            await api.apply(ENDPOINTS, obj, manager="fake-kubelet")
            ray.endpoints[key] = head["metadata"]["name"]


def _ready(pod: Json, address: str) -> Json:
    containers = [
        {
            "name": container["name"],
            "ready": True,
            "restartCount": 0,
            "image": container["image"],
            "imageID": f"{container['image'].partition(':')[0].partition('@')[0]}@sha256:{'e' * 64}",
            "state": {"running": {"startedAt": "2026-01-01T00:00:00Z"}},
        }
        for container in pod["spec"]["containers"]
    ]
    conditions = [
        {"type": kind, "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        for kind in ("PodScheduled", "Initialized", "ContainersReady", "Ready")
    ]
    return {
        "phase": "Running",
        "podIP": address,
        "podIPs": [{"ip": address}],
        "hostIP": address,
        "conditions": conditions,
        "containerStatuses": containers,
    }


@contextlib.contextmanager
def fake_ray(plane: ControlPlane) -> Iterator[FakeRay]:
    """Serve on a separate address of 198.18.0.0/15 (reserved for benchmarks). Adding the address needs root."""
    ray = FakeRay(f"198.18.{random.randrange(1, 250)}.{random.randrange(1, 250)}")
    add = ["ip", "addr", "add", f"{ray.address}/32", "dev", "lo"]
    if subprocess.run(add, capture_output=True, check=False).returncode:
        pytest.skip("adding an address to lo needs root, and the API server does not proxy to loopback addresses")
    stop = threading.Event()
    ready = threading.Event()
    thread = threading.Thread(target=lambda: asyncio.run(_serve(plane, ray, ready, stop)), daemon=True)
    thread.start()
    try:
        assert ready.wait(20), "the dashboard does not start"
        yield ray
    finally:
        stop.set()
        thread.join(10)
        subprocess.run(["ip", "addr", "del", f"{ray.address}/32", "dev", "lo"], capture_output=True, check=False)


async def _serve(plane: ControlPlane, ray: FakeRay, ready: threading.Event, stop: threading.Event) -> None:
    runner = web.AppRunner(ray.app())
    await runner.setup()
    await web.TCPSite(runner, ray.address, PORT).start()
    ready.set()
    async with await Api.connect(str(plane.kubeconfig)) as api:
        await _run_kubelet(api, ray, stop)
    await runner.cleanup()
