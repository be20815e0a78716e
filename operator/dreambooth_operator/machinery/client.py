"""Requests to the API server: `kubernetes.aio` for configuration, credentials and TLS; JSON in and out."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from typing import Any, Self, cast
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio import client as kube
from kubernetes.aio import config as kube_config
from pydantic_core import from_json

from dreambooth_operator.machinery.jsontext import parse_json
from dreambooth_operator.machinery.resources import Json, Key, Resource, key_of, part

APPLY_PATCH = "application/apply-patch+yaml"
MERGE_PATCH = "application/merge-patch+json"
_REQUEST_SECONDS = 30
# The server sends a bookmark every minute; a watch that is silent for longer is dead.
_WATCH_SILENCE_SECONDS = 90


class ApiError(Exception):
    """The API server said no.

    Attributes:
        status: the HTTP status.
        reason: Kubernetes' word for it, such as AlreadyExists, Conflict, Invalid.
        message: the server's sentence.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{reason} ({status}): {message}")
        self.status = status
        self.reason = reason
        self.message = message

    @property
    def is_transient(self) -> bool:
        """Whether the same request may succeed later: overload, time-outs, a server that is going down."""
        return self.status == 429 or self.status >= 500

    @property
    def is_conflict(self) -> bool:
        """The object changed since it was read; read it again and decide anew."""
        return self.status == 409 and self.reason != "AlreadyExists"

    @property
    def is_already_exists(self) -> bool:
        """Create only: the name is taken."""
        return self.reason == "AlreadyExists"

    @property
    def is_not_found(self) -> bool:
        """There is no such object, or no such kind."""
        return self.status == 404

    @property
    def is_expired(self) -> bool:
        """The resource version is too old to continue a list or a watch from: list again."""
        return self.status == 410


# What a request may raise when the server cannot be reached at all.
CONNECTION_ERRORS = (aiohttp.ClientError, TimeoutError, ConnectionError)


class Api:
    """A connection to one API server. Close it, or use it as an async context manager."""

    def __init__(self, configuration: kube.Configuration) -> None:
        self._client: Any = kube.ApiClient(configuration)  # its annotations are partial
        self._host: str = configuration.host

    @classmethod
    async def connect(cls, kubeconfig: str | None = None, context: str | None = None) -> Self:
        """Connect as `kubeconfig` says, else as $KUBECONFIG does, else as the pod's service account."""
        configuration, load = kube.Configuration(), cast("Any", kube_config)
        configuration.connection_pool_maxsize = 100  # watches hold connections for good
        try:
            await load.load_kube_config(config_file=kubeconfig, context=context, client_configuration=configuration)
        except kube_config.ConfigException:
            if kubeconfig or context:
                raise
            load.load_incluster_config(client_configuration=configuration)
        return cls(configuration)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of all connections."""
        await self._client.close()

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
    ) -> Json:
        """One request and its parsed answer.

        Raises:
            ApiError: the server answered with an error.
            one of CONNECTION_ERRORS: it did not answer.
        """
        response = await self._send(
            method, path, query or {}, body, {"Content-Type": content_type, **(headers or {})},
            aiohttp.ClientTimeout(total=seconds),
        )  # fmt: skip
        async with response:
            text = await response.read()
        if response.status >= 400:
            raise _error(response.status, text)
        return await parsed(text) if text else {}

    async def text(self, path: str, *, query: Mapping[str, str] | None = None) -> str:
        """A GET whose answer is not JSON, as a pod's log."""
        timeout = aiohttp.ClientTimeout(total=_REQUEST_SECONDS)
        async with await self._send("GET", path, query or {}, None, {}, timeout) as response:
            content = await response.read()
        if response.status >= 400:
            raise _error(response.status, content)
        return content.decode(errors="replace")

    async def lines(self, path: str, query: Mapping[str, str]) -> AsyncIterator[bytes]:
        """A GET whose answer is an endless stream, as a watch; yields whole lines of any length."""
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=_WATCH_SILENCE_SECONDS)
        response = await self._send("GET", path, query, None, {}, timeout)
        async with response:
            if response.status >= 400:
                raise _error(response.status, await response.read())
            rest = b""
            async for chunk in response.content.iter_any():
                *whole, rest = (rest + chunk).split(b"\n")
                for line in whole:
                    yield line

    async def get(self, resource: Resource, key: Key) -> Json:
        """One object; ApiError.is_not_found if it is not there, ApiError as well if another one came."""
        obj = await self.request("GET", _path(resource, key))
        if obj.get("kind") != resource.kind or part(obj, "metadata").get("name") != key.name or key_of(obj) != key:
            raise ApiError(502, "WrongObject", f"asked for {resource.kind} {key}, got {_named(obj)}")
        return obj

    async def create(self, resource: Resource, obj: Json) -> Json:
        """POST; ApiError.is_already_exists if the name is taken."""
        return await self.request("POST", resource.path(obj["metadata"].get("namespace", "")), body=obj)

    async def apply(
        self, resource: Resource, obj: Json, *, manager: str, subresource: str = "", force: bool = True
    ) -> Json:
        """Server-side apply: the fields in `obj` are `manager`'s, all others stay as they are.

        With `metadata.resourceVersion` in `obj` it is also a compare-and-swap: ApiError.is_conflict
        if the object has changed since.
        """
        metadata = obj["metadata"]
        path = _path(resource, Key(metadata.get("namespace", ""), metadata["name"]), subresource)
        query = {"fieldManager": manager, "force": "true" if force else "false"}
        return await self.request("PATCH", path, query=query, body=obj, content_type=APPLY_PATCH)

    async def merge(self, resource: Resource, key: Key, patch: Json, *, subresource: str = "") -> Json:
        """JSON merge patch: what `patch` names is set, a null removes."""
        path = _path(resource, key, subresource)
        return await self.request("PATCH", path, body=patch, content_type=MERGE_PATCH)

    async def delete(self, resource: Resource, key: Key, *, uid: str = "", foreground: bool = False) -> bool:
        """Delete an object; False if it was gone already. With `uid`, only that very object.

        With `foreground` it stays until all that it owns is gone, else that is collected afterwards.
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
        sent: dict[str, str] = {"User-Agent": "dreambooth-operator", "Accept": "application/json", **headers}
        # Fills in the bearer token, and refreshes it when it is about to expire.
        await self._client.update_params_for_auth(sent, [], ["BearerToken"], path, method, None)
        answer = await self._client.rest_client.request(
            method, self._url(path, query), headers=sent, body=body, _request_timeout=timeout
        )
        return answer.response

    def _url(self, path: str, query: Mapping[str, str]) -> str:
        return f"{self._host}{path}?{urlencode(query)}" if query else f"{self._host}{path}"


async def parsed(text: bytes) -> Json:
    """An answer of the server, or one event of a watch; its nesting is bounded (see `jsontext`).

    Raises:
        ApiError: it is not JSON.
    """
    try:
        return await parse_json(text)
    except ValueError as error:
        raise ApiError(502, "Unreadable", f"the API server sent no JSON: {error}") from error


def _path(resource: Resource, key: Key, subresource: str = "") -> str:
    """The path of one object. Raises ValueError without a name, which would mean the whole collection."""
    if not key.name:
        raise ValueError(f"{resource.kind} in namespace {key.namespace!r}: the name is empty")
    return resource.path(*key, subresource)


def _named(obj: Json) -> str:
    metadata = part(obj, "metadata")
    return f"{obj.get('kind')} {metadata.get('namespace', '')}/{metadata.get('name', '')}"


def _error(status: int, text: bytes) -> ApiError:
    try:
        answer = from_json(text)
        return ApiError(status, answer.get("reason") or "Unknown", answer.get("message") or "")
    except (ValueError, AttributeError):
        return ApiError(status, "Unknown", text.decode(errors="replace")[:500])
