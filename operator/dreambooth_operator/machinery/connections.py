"""Limits of the connections to an HTTP server: their number, and the time until their first request."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from aiohttp import web

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class _Refused(asyncio.Protocol):
    """Closes a connection at once."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        transport.close()


class ConnectionLimits:
    """Closes connections beyond `max_open`, and those without a request after `first_request_seconds`.

    aiohttp limits the time between requests only, so that a client that sends nothing would hold its connections.
    """

    def __init__(self, *, max_open: int, first_request_seconds: float) -> None:
        self._max_open = max_open
        self._seconds = first_request_seconds
        self._unused: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}

    @web.middleware
    async def mark_used(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware of the application: the connection has sent a request."""
        if timer := self._unused.pop(request.protocol, None):
            timer.cancel()
        return await handler(request)

    def new_protocol(self, server: web.Server) -> asyncio.BaseProtocol:
        """The protocol of a new connection."""
        if len(server.connections) >= self._max_open:
            return _Refused()
        protocol = server()
        timer = asyncio.get_running_loop().call_later(self._seconds, self._close_unused, protocol)
        self._unused[protocol] = timer
        return protocol

    def _close_unused(self, protocol: web.RequestHandler) -> None:
        del self._unused[protocol]
        if protocol.transport is not None:  # else the client has closed it
            protocol.transport.abort()
