"""The kopf operator that bench/operator_scale.py starts for comparison.

It has an index of RayJobs, and handlers that look up a job's RayJob and patch the job's phase if it differs.
"""

from __future__ import annotations

import asyncio
import os
import sys
from typing import Any

import kopf
from aiohttp import web

GROUP = "dreambooth.dev"
seen: set[str] = set()


@kopf.on.startup()
def configure(settings: kopf.OperatorSettings, **_: Any) -> None:
    settings.posting.enabled = False
    settings.peering.standalone = True


@kopf.on.login()
def login(**given: Any) -> kopf.ConnectionInfo | None:
    return kopf.login_with_kubeconfig(**given)


@kopf.index("ray.io", "v1", "rayjobs")
async def ray_jobs(namespace: str, name: str, status: Any, **_: Any) -> dict[tuple[str, str], str]:
    return {(namespace, name): status.get("jobDeploymentStatus", "")}


@kopf.on.resume(GROUP, "v1alpha1", "dreamboothjobs")
@kopf.on.create(GROUP, "v1alpha1", "dreamboothjobs")
@kopf.on.update(GROUP, "v1alpha1", "dreamboothjobs")
async def reconcile(uid: str, namespace: str, status: Any, patch: Any, ray_jobs: kopf.Index, **_: Any) -> None:
    found = ray_jobs.get((namespace, status.get("rayJobName")), [])
    phase = next(iter(found), status.get("phase"))
    if phase != status.get("phase"):
        patch.status["phase"] = phase
    seen.add(uid)


async def main() -> None:
    app = web.Application()

    async def count(_: web.Request) -> web.Response:
        return web.Response(text=str(len(seen)))

    app.add_routes([web.get("/", count)])
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", int(sys.argv[2])).start()
    await kopf.operator(clusterwide=True)


if __name__ == "__main__":
    os.environ["KUBECONFIG"] = sys.argv[1]
    asyncio.run(main())
