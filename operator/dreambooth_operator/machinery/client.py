"""Requests to the API server in JSON."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Self
from urllib.parse import urlencode

import aiohttp
from pydantic_core import SchemaValidator, from_json, to_json

from dreambooth_operator.machinery.connection import Connection, find_connection
from dreambooth_operator.machinery.jsontext import parse_json
from dreambooth_operator.machinery.resources import Json, Key, Resource, key_of, part

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
_REQUEST_SECONDS = 30
_MAX_REQUESTS = 100  # at a time, besides watches, which hold connections permanently
# The server sends a bookmark every minute, so a watch that is silent for longer is dead.
_WATCH_SILENCE_SECONDS = 90


class ApiError(Exception):
    """An error response of the API server.

    Attributes:
        status: HTTP status code.
        reason: reason of the Kubernetes Status, for example AlreadyExists, Conflict or Invalid.
        message: message of the Kubernetes Status.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later: overload, timeout, shutdown of the server."""
        return self.status == 429 or self.status >= 500

    @property
    def is_conflict(self) -> bool:
        """Whether the object has changed since it was read, so that it must be read again."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_already_exists(self) -> bool:
        """For create: whether an object of that name exists."""
        return self.reason == "AlreadyExists"

    @property
    def is_not_found(self) -> bool:
        """Whether the object, or its kind, does not exist."""
        return self.status == 404

    @property
    def is_expired(self) -> bool:
        """Whether the resource version is too old to continue a list or a watch, so that a new list is needed."""
        return self.status == 410


# Raised by requests if the server cannot be reached.
CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, ConnectionError)


class Api:
    """A connection to one API server. Close it, or use it as an async context manager."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._session: aiohttp.ClientSession | None = None
        self._slots = asyncio.Semaphore(_MAX_REQUESTS)

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """Connect with `kubeconfig`, else with $KUBECONFIG, else with the pod's service account."""
        return cls(await find_connection(kubeconfig, context))

    @property
    def host(self) -> str:
        """URL of the API server."""
        return self._connection.host

    @property
    def namespace(self) -> str:
        """Namespace of the kubeconfig's context, or of the pod."""
        return self._connection.namespace

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections."""
        if self._session:
            await self._session.close()

    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: Json | None = None,
        content_type: str = "application/json",
        headers: Mapping[str, str] | None = None,
        seconds: float = _REQUEST_SECONDS,
        partial: SchemaValidator | None = None,
    ) -> Json:
        """Send a request and return the parsed response; with `partial`, the fields that it selects.

        Raises:
            ApiError: the server responded with an error.
            one of CONNECTION_ERRORS: the server did not respond.
        """
        timeout = aiohttp.ClientTimeout(total=seconds)
        sent = {"Content-Type": content_type, **(headers or {})}
        async with self._slots, await self._send(method, path, query or {}, body, sent, timeout) as response:
            text = await response.read()
        if response.status >= 400:
            raise _error(response.status, text)
        return await parsed(text, partial) if text else {}

    async def text(self, path: str, *, query: Mapping[str, str] | None = None) -> str:
        """A GET of text, for example a pod's log."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        async with await self._send("GET", path, query or {}, None, {}, timeout) as response:
            content = await response.read()
        if response.status >= 400:
            raise _error(response.status, content)
        return content.decode(errors="replace")

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """A GET of an endless stream, as a watch is. Yields complete lines of any length."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE_SECONDS)
        response = await self._send("GET", path, query, None, {}, timeout)
        async with response:
            if response.status >= 400:
                raise _error(response.status, await response.read())
            rest = b""
            async for chunk in response.content.iter_any():
                *complete, rest = (rest + chunk).split(b"\n")
                for line in complete:
                    yield line

    async def get(self, resource: Resource, key: Key) -> Json:
        """Get one object. Raises ApiError if it does not exist, or if the server returned another object."""
        obj = await self.request("GET", _path(resource, key))
        if obj.get("kind") != resource.kind or part(obj, "metadata").get("name") != key.name or key_of(obj) != key:
            raise ApiError(502, "WrongObject", f"requested {resource.kind} {key}, got {_description(obj)}")
        return obj

    async def create(self, resource: Resource, obj: Json) -> Json:
        """Create an object. Raises ApiError, with is_already_exists, if the name is taken."""
        return await self.request("POST", resource.path(obj["metadata"].get("namespace", "")), body=obj)

    async def apply(
        self, resource: Resource, obj: Json, *, manager: str, subresource: str = "", force: bool = True
    ) -> Json:
        """Server-side apply: `manager` owns the fields in `obj`; other fields do not change.

        With `metadata.resourceVersion` in `obj` it is also a compare-and-swap: it raises ApiError, with is_conflict,
        if the object has changed since.
        """
        metadata = obj["metadata"]
        path = _path(resource, Key(metadata.get("namespace", ""), metadata["name"]), subresource)
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self.request("PATCH", path, query=query, body=obj, content_type=APPLY_PATCH)

    async def merge(self, resource: Resource, key: Key, patch: Json, *, subresource: str = "") -> Json:
        """JSON merge patch: sets the fields in `patch`; null removes a field."""
        path = _path(resource, key, subresource)
        return await self.request("PATCH", path, body=patch, content_type=MERGE_PATCH)

    async def delete(self, resource: Resource, key: Key, *, uid: str = "", foreground: bool = False) -> bool:
        """Delete an object. Returns False if it did not exist. With `uid`, only that very object is deleted.

        With `foreground` the object exists until all its dependents are gone. Otherwise they are deleted afterwards.
        """
        body: Json = {"propagationPolicy": "Foreground" if foreground else "Background"}
        if uid:
            body["preconditions"] = {"uid": uid}
        try:
            await self.request("DELETE", _path(resource, key), body=body)
        except ApiError as error:
            if error.is_not_found or (uid and error.status == 409):
                return False
            raise
        return True

    async def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        body: Json | None,
        headers: Mapping[str, str],
        timeout: aiohttp.ClientTimeout,
    ) -> aiohttp.ClientResponse:
        connection = self._connection
        # Decompression would take longer than the transfer within a cluster.
        sent = {
            "User-Agent": "dreambooth-operator",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
            **headers,
        }
        if authorization := await connection.authorization():
            sent["Authorization"] = authorization
        if self._session is None:  # a session belongs to the running event loop
            connector = aiohttp.TCPConnector(limit=0, ssl=connection.tls)
            self._session = aiohttp.ClientSession(connector=connector, trust_env=True)
        return await self._session.request(
            method,
            self._url(path, query),
            headers=sent,
            data=None if body is None else to_json(body),
            timeout=timeout,
            server_hostname=connection.server_name,
            proxy=connection.proxy,
        )

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        return f"{self._connection.host}{path}?{urlencode(query)}" if query else f"{self._connection.host}{path}"


async def parsed(text: bytes, partial: SchemaValidator | None = None) -> Json:
    """Parse a response, or an event of a watch. Its nesting is limited (see `jsontext`).

    Raises:
        ApiError: the text is not JSON.
    """
    try:
        return await parse_json(text, partial)
    except ValueError as error:
        raise ApiError(502, "Unreadable", f"the response of the API server is not JSON: {error}") from error


def _path(resource: Resource, key: Key, subresource: str = "") -> str:
    """The path of one object. Raises ValueError if the name is empty, because the path would be the collection's."""
    if not key.name:
        raise ValueError(f"{resource.kind} in namespace {key.namespace!r}: the name is empty")
    return resource.path(*key, subresource)


def _description(obj: Json) -> str:
    metadata = part(obj, "metadata")
    return f"{obj.get('kind')} {metadata.get('namespace', '')}/{metadata.get('name', '')}"


def _error(status: int, text: bytes) -> ApiError:
    try:
        answer = from_json(text)
        return ApiError(status, answer.get("reason") or "Unknown", answer.get("message") or "")
    except (ValueError, AttributeError):
        return ApiError(status, "Unknown", text.decode(errors="replace")[:500])
