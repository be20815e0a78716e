"""HTTP servers of a controller: health checks, metrics, and any `aiohttp` application."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from dreambooth_operator.machinery.metrics import Metrics


def health_app(metrics: Metrics, is_ready: Callable[[], bool]) -> web.Application:
    """`/healthz` responds while the event loop runs, `/readyz` depends on `is_ready`, `/metrics` serves Prometheus."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        ready = is_ready()
        return web.Response(status=200 if ready else 503, text="ok" if ready else "the caches are not filled yet")

    async def render(_: web.Request) -> web.Response:
        return web.Response(body=metrics.render(), headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)])
    return app


@asynccontextmanager
async def serving(app: web.Application, host: str, port: int) -> AsyncGenerator[int]:
    """Serve `app` inside the context, on all addresses if `host` is empty.

    Yields the port, which the system chooses if `port` is 0.
    """
    runner = web.AppRunner(app, access_log=None, lingering_time=1.0)
    await runner.setup()
    try:
        await web.TCPSite(runner, host or None, port).start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()
