"""Reports of trainers have an API client of their own: however many wait, the reconciler still makes requests."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import ssl
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import ClientSession, web
from operatorprocess import _free_port
from test_auth import token
from test_crd import MINIMAL

from dreambooth_operator import app
from dreambooth_operator.app import Options
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery import client
from dreambooth_operator.machinery.certificates import decode_authority
from dreambooth_operator.machinery.resources import Json
from dreambooth_operator.resources import JOBS
from dreambooth_operator.statusserver import server

# Connections of a client: more than the watches, fewer than the reports.
CONNECTIONS, REPORTS = 12, 30
ENOUGH = 4  # what the watches leave, at least
DOG = {
    **MINIMAL,
    "metadata": {
        "name": "dog", "namespace": "team", "uid": "u1", "resourceVersion": "2", "generation": 1,
        "creationTimestamp": "2026-11-24T06:00:00Z",
    },
}  # fmt: skip


class SlowServer:
    """An API server without objects that answers no token review until `released`. One job appears when reviews wait.

    Attributes:
        waiting_at_write: how many reviews waited when the operator wrote the status of the job.
    """

    def __init__(self) -> None:
        self.secret: Json = {"kind": "Secret", "metadata": {}}
        self.waiting = 0
        self.flooded = asyncio.Event()
        self.written = asyncio.Event()
        self.released = asyncio.Event()
        self.waiting_at_write = 0

    async def handle(self, request: web.Request) -> web.StreamResponse:
        path = request.path
        if path.endswith("/tokenreviews"):
            return await self._wait()
        if "/secrets/" in path:
            return await self._secret(request)
        if request.method == "PATCH" and path.endswith("/team/dreamboothjobs/dog/status"):
            self.waiting_at_write = self.waiting
            self.written.set()
            return web.json_response({**DOG, "status": json.loads(await request.read())["status"]})
        if request.query.get("sendInitialEvents"):
            return web.json_response({"reason": "Invalid", "message": "is forbidden"}, status=422)
        if request.query.get("watch"):
            return await self._watch(request)
        return web.json_response({"items": [], "metadata": {"resourceVersion": "1"}})

    async def _wait(self) -> web.StreamResponse:
        self.waiting += 1
        try:
            if self.waiting == ENOUGH:
                self.flooded.set()
            await self.released.wait()
            return web.json_response({}, status=503)
        finally:  # also if the client has given up
            self.waiting -= 1

    async def _secret(self, request: web.Request) -> web.Response:
        if request.method == "PUT":
            self.secret = await request.json()
        namespace, name = request.path.split("/")[-3::2]
        self.secret["metadata"] = {"namespace": namespace, "name": name, "resourceVersion": "1"}
        return web.json_response(self.secret)

    async def _watch(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        if request.path == JOBS.path():
            await self.flooded.wait()
            await response.write(json.dumps({"type": "ADDED", "object": DOG}).encode() + b"\n")
        await asyncio.Event().wait()
        return response


@contextlib.asynccontextmanager
async def slow_server(folder: Path) -> AsyncIterator[tuple[SlowServer, Path]]:
    """Yields the server and a kubeconfig for it."""
    slow = SlowServer()
    application = web.Application()
    application.router.add_route("*", "/{path:.*}", slow.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", _free_port())
    await site.start()
    context = {"name": "c", "context": {"cluster": "c", "user": "u"}}
    config = {
        "apiVersion": "v1", "kind": "Config", "current-context": "c", "contexts": [context],
        "clusters": [{"name": "c", "cluster": {"server": site.name}}], "users": [{"name": "u", "user": {}}],
    }  # fmt: skip
    (folder / "config").write_text(json.dumps(config))
    try:
        yield slow, folder / "config"
    finally:
        await runner.cleanup()


async def report(session: ClientSession, port: int, tls: ssl.SSLContext, number: int) -> None:
    """Send a report, each with another token, which is not refused before the API server has reviewed it."""
    headers = {"Authorization": f"Bearer {token(f'signature{number}', exp=time.time() + 600)}"}
    url = f"https://127.0.0.1:{port}/v1/jobs/team/dog/attempts/1"
    async with session.post(url, headers=headers, json={"step": number}, ssl=tls):
        pass


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def test_reports_do_not_starve_the_reconciler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "_MAX_REQUESTS", CONNECTIONS)
    monkeypatch.setattr(server, "_REQUEST_SECONDS", 3600)
    port = _free_port()
    async with slow_server(tmp_path) as (slow, config), asyncio.timeout(60):
        settings = Settings(progress_url=f"https://127.0.0.1:{port}")
        options = Options(
            kubeconfig=str(config), host="127.0.0.1", health_port=0, progress_port=port, settings=settings
        )
        operator = asyncio.create_task(app.run(options))
        while not (authority := decode_authority(slow.secret.get("data", {}))):
            await asyncio.sleep(0.05)
        tls = ssl.create_default_context(cadata=authority.trusted())
        while not answers(port):
            await asyncio.sleep(0.05)
        async with ClientSession() as session:
            reports = [asyncio.create_task(report(session, port, tls, number)) for number in range(REPORTS)]
            await slow.written.wait()
            assert slow.waiting_at_write >= ENOUGH, "the reports had not given up yet"
            slow.released.set()
            for task in (*reports, operator):
                task.cancel()
            await asyncio.gather(*reports, operator, return_exceptions=True)
