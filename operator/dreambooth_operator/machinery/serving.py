"""HTTP servers of a controller: health checks, metrics, and any `aiohttp` application."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager

from aiohttp import web

from dreambooth_operator.machinery.connections import ConnectionLimits, listen
from dreambooth_operator.machinery.metrics import Metrics

# Twice the reports that are handled at a time. Probes and Prometheus need few.
_MAX_OPEN = 512
_FIRST_REQUEST_SECONDS = 10
_KEEPALIVE_SECONDS = 10  # aiohttp's default is an hour: few clients could hold all connections


def health_app(metrics: Metrics, is_ready: Callable[[], bool]) -> web.Application:
    """`/healthz` responds while the event loop runs, `/readyz` depends on `is_ready`, `/metrics` serves Prometheus."""

    async def healthz(_: web.Request) -> web.Response:
        return web.Response(text="ok")

    async def readyz(_: web.Request) -> web.Response:
        ready = is_ready()
        return web.Response(status=200 if ready else 503, text="ok" if ready else "the caches are not filled yet")

    async def render(_: web.Request) -> web.Response:
        # In a thread: the event loop has other work while thousands of series are rendered.
        text = await asyncio.to_thread(metrics.render)
        return web.Response(body=text, headers={"Content-Type": "text/plain; version=0.0.4"})

    app = web.Application()
    app.add_routes([web.get("/healthz", healthz), web.get("/readyz", readyz), web.get("/metrics", render)])
    return app


@asynccontextmanager
async def serving(
    app: web.Application,
    host: str,
    port: int,
    *,
    limits: ConnectionLimits | None = None,
    tls: ssl.SSLContext | None = None,
) -> AsyncGenerator[int]:
    """Serve `app` inside the context, on all addresses if `host` is empty. `limits` add a middleware to `app`.

    Without `tls` it serves plain HTTP. Yields the port, which the system chooses if `port` is 0.
    """
    limits = limits or ConnectionLimits(max_open=_MAX_OPEN, first_request_seconds=_FIRST_REQUEST_SECONDS)
    app.middlewares.append(limits.mark_used)
    runner = web.AppRunner(app, access_log=None, lingering_time=1.0, keepalive_timeout=_KEEPALIVE_SECONDS)
    await runner.setup()
    server = runner.server
    assert server is not None  # after setup
    with listen(host, port) as listener:
        accepting = asyncio.create_task(limits.accept(listener, server, tls))
        try:
            yield listener.getsockname()[1]
        finally:
            accepting.cancel()
            await asyncio.gather(accepting, return_exceptions=True)
            await runner.cleanup()
