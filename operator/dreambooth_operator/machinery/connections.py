"""Connections to an HTTP server: limits of their number and rate, and of the time until their first request."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
from collections.abc import Awaitable, Callable

from aiohttp import web

log = logging.getLogger(__name__)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
_BACKLOG = 100
_PAUSE_SECONDS = 1.0
_MIN_OF_ADDRESS = 8
# A TLS handshake takes nearly 1 ms of CPU and needs no token. At most 330 per second leave the event loop the time for
# the reconciler and the lease.
_HANDSHAKE_PAUSE_SECONDS = 0.003


class ConnectionLimits:
    """Closes connections beyond `max_open`, and those without a request after `first_request_seconds`.

    One address has at most an eighth of the connections: a pod must not keep those of other tenants from reporting.

    aiohttp limits the time between requests only, so that a client that sends nothing would hold its connections.
    asyncio's servers do not tell how many TLS handshakes are in progress, each of which takes 256 KiB of memory.
    """

    def __init__(self, *, max_open: int, first_request_seconds: float) -> None:
        self._max_open = max_open
        self._max_of_address = max(_MIN_OF_ADDRESS, max_open // 8)
        self._seconds = first_request_seconds
        self._unused: dict[asyncio.BaseProtocol, asyncio.TimerHandle] = {}
        self._handshakes: dict[asyncio.Task[None], str] = {}  # address of the client

    @web.middleware
    async def mark_used(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Middleware of the application: the connection has sent a request."""
        if timer := self._unused.pop(request.protocol, None):
            timer.cancel()
        return await handler(request)

    async def accept(self, listener: socket.socket, server: web.Server, tls: ssl.SSLContext | None) -> None:
        """Accept the connections of `listener` forever, and let `server` serve them, with `tls` if it is given."""
        loop = asyncio.get_running_loop()
        try:
            while True:
                try:
                    connection, (address, *_) = await loop.sock_accept(listener)
                except OSError as error:  # for example, too many open files
                    log.warning("connections are not accepted for %s s: %s", _PAUSE_SECONDS, error)
                    await asyncio.sleep(_PAUSE_SECONDS)
                    continue
                if not self._has_room(address, server):
                    connection.close()
                    continue
                task = loop.create_task(self._open(connection, server, tls))
                self._handshakes[task] = address
                task.add_done_callback(self._handshakes.pop)
                if tls:
                    await asyncio.sleep(_HANDSHAKE_PAUSE_SECONDS)
        finally:
            for task in self._handshakes:
                task.cancel()

    def _has_room(self, address: str, server: web.Server) -> bool:
        """Whether a client with this address may have another connection."""
        used = len(server.connections) + len(self._handshakes)
        if used < self._max_of_address:
            return used < self._max_open
        peers = [each.transport.get_extra_info("peername") for each in server.connections if each.transport]
        own = sum(peer is not None and peer[0] == address for peer in peers)
        own += sum(client == address for client in self._handshakes.values())
        return used < self._max_open and own < self._max_of_address

    async def _open(self, connection: socket.socket, server: web.Server, tls: ssl.SSLContext | None) -> None:
        loop = asyncio.get_running_loop()
        protocol = server()
        timer = loop.call_later(self._seconds, self._close_unused, protocol)
        self._unused[protocol] = timer
        try:
            await loop.connect_accepted_socket(
                lambda: protocol, connection, ssl=tls, ssl_handshake_timeout=self._seconds if tls else None
            )
        except OSError as error:  # of TLS, too: the client does not trust the certificate, or does not use TLS
            log.debug("connection closed: %s", error)
            timer.cancel()
            self._unused.pop(protocol, None)

    def _close_unused(self, protocol: web.RequestHandler) -> None:
        del self._unused[protocol]
        if protocol.transport is not None:  # else the client has closed it, or the handshake times out now
            protocol.transport.abort()


def listen(host: str, port: int) -> socket.socket:
    """A listening socket, on all addresses if `host` is empty. The system chooses the port if it is 0."""
    family, dual = (socket.AF_INET6 if ":" in host else socket.AF_INET), False
    if not host and socket.has_dualstack_ipv6():
        family, dual = socket.AF_INET6, True
    listener = socket.create_server((host, port), family=family, dualstack_ipv6=dual, backlog=_BACKLOG)
    listener.setblocking(False)
    return listener
