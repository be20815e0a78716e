"""Names never address another object: URL paths, and the status server against the real API server."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane
from test_crd import MINIMAL

from dreambooth_operator.controller.names import base_name
from dreambooth_operator.controller.observed import read_job
from dreambooth_operator.controller.settings import AUDIENCE
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Key, Resource
from dreambooth_operator.machinery.serving import serving
from dreambooth_operator.resources import JOBS
from dreambooth_operator.statusserver.auth import TokenChecker
from dreambooth_operator.statusserver.server import StatusServer

INVALID_SEGMENTS = (".", "..", "a/b", "../x", "/", "a\nb", "a\rb", "a\x00", "\x7f", "%2F", "a%2e%2eb")


@pytest.mark.parametrize("bad", INVALID_SEGMENTS)
def test_invalid_path_segments_are_rejected(bad: str) -> None:
    for parts in ((bad, "x"), ("x", bad), ("x", "y", bad)):
        with pytest.raises(ValueError, match="not a valid URL path segment"):
            JOBS.path(*parts)


def test_path_segments_are_quoted() -> None:
    assert (
        JOBS.path("a b", "c?d#e", "é")
        == "/apis/dreambooth.dev/v1alpha1/namespaces/a%20b/dreamboothjobs/c%3Fd%23e/%C3%A9"
    )
    assert CONFIG_MAPS.path() == "/api/v1/configmaps"
    assert CONFIG_MAPS.path("n") == "/api/v1/namespaces/n/configmaps"


@pytest.mark.parametrize("suffix", ["?", "?x=1", "#", "#x", "/", "/.", "/../c", "\n", "%3F"])
async def test_name_never_addresses_another_object(api: Api, namespace: str, suffix: str) -> None:
    await api.apply(
        CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(namespace, "c")}, manager="t"
    )
    key = Key(namespace, f"c{suffix}")
    with pytest.raises((ApiError, ValueError)):
        await api.get(CONFIG_MAPS, key)
    with pytest.raises((ApiError, ValueError)):
        await api.merge(CONFIG_MAPS, key, {"data": {"stolen": "1"}})
    with contextlib.suppress(ValueError):
        assert not await api.delete(CONFIG_MAPS, key)
    assert "data" not in await api.get(CONFIG_MAPS, Key(namespace, "c"))


async def test_empty_name_does_not_address_the_collection(api: Api, namespace: str) -> None:
    await api.apply(
        CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(namespace, "c")}, manager="t"
    )
    for ask in (api.get, api.delete):
        with pytest.raises(ValueError, match="the name is empty"):
            await ask(CONFIG_MAPS, Key(namespace, ""))
    assert await api.get(CONFIG_MAPS, Key(namespace, "c"))


async def test_object_of_another_kind_is_an_error(api: Api, namespace: str) -> None:
    await api.apply(
        CONFIG_MAPS, {"apiVersion": "v1", "kind": "ConfigMap", "metadata": meta(namespace, "c")}, manager="t"
    )
    with pytest.raises(ApiError, match=f"requested Secret {namespace}/c, got ConfigMap {namespace}/c"):
        await api.get(Resource("", "v1", "configmaps", "Secret"), Key(namespace, "c"))


@pytest.fixture
async def port(api: Api) -> AsyncIterator[int]:
    """The status server, in this process, on the real API server."""
    tokens = TokenChecker(api, AUDIENCE, clock=time.time)
    server = StatusServer(api, tokens, cached=lambda _: None, now=lambda: datetime.now(UTC))
    async with serving(server.app(), "127.0.0.1", 0) as port:
        yield port


def post(port: int, path: str, token: str = "") -> int:
    """POST a report to a path that no client library normalizes. Returns the status code."""
    body = b'{"phase": "Train", "step": 666}'
    head = [f"POST {path} HTTP/1.1", "Host: x", f"Content-Length: {len(body)}", "Connection: close"]
    if token:
        head.append(f"Authorization: Bearer {token}")
    with socket.create_connection(("127.0.0.1", port), timeout=20) as connection:
        connection.sendall("\r\n".join([*head, "", ""]).encode() + body)
        response = b""
        while chunk := connection.recv(65536):
            response += chunk
    return int(response.split()[1])


def started_job(plane: ControlPlane, namespace: str) -> dict[str, Any]:
    """A job in its first attempt."""
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    patch = '{"status": {"phase": "Running", "attempts": 1}}'
    plane.kubectl("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)
    return plane.get("dbj", "my-dog", "-n", namespace)


ATTACKS = (
    "/v1/jobs/{attacker}/..%2F..%2F{victim}%2Fdreamboothjobs%2Fmy-dog/attempts/1",
    "/v1/jobs/{attacker}/%2e%2e%2f%2e%2e%2f{victim}%2fdreamboothjobs%2fmy-dog/attempts/1",
    "/v1/jobs/{attacker}/x%2F..%2F..%2F..%2F{victim}%2Fdreamboothjobs%2Fmy-dog%3F/attempts/1",
    "/v1/jobs/{attacker}/..%2F..%2F{victim}%2Fdreamboothjobs%2Fmy-dog%23/attempts/1",
    "/v1/jobs/{attacker}/..%252F..%252F{victim}%252Fdreamboothjobs%252Fmy-dog/attempts/1",
)


@pytest.mark.parametrize("attack", ATTACKS)
async def test_report_for_a_job_of_another_namespace_is_rejected(
    plane: ControlPlane, namespace: str, port: int, attack: str
) -> None:
    victim = started_job(plane, namespace)
    attacker, account = f"{namespace}-attacker", base_name(read_job(victim))
    plane.kubectl("create", "namespace", attacker)
    plane.kubectl("create", "serviceaccount", account, "-n", attacker)
    token = plane.kubectl("create", "token", account, "-n", attacker, f"--audience={AUDIENCE}").strip()
    assert await asyncio.to_thread(post, port, attack.format(attacker=attacker, victim=namespace), token) == 404
    after = plane.get("dbj", "my-dog", "-n", namespace)
    assert after["status"] == victim["status"]
    assert after["metadata"]["resourceVersion"] == victim["metadata"]["resourceVersion"]


BAD_NAMES = (
    "..", "%2E%2E", "a%2Fb", "..%2Fb", "a%3Fb", "a%23b", "a%0Ab", "a%00", "A", "a.b", "a_b", "-a", "a-", "a" * 64,
    "%C3%A9",
)  # fmt: skip


@pytest.mark.parametrize("bad", BAD_NAMES)
async def test_invalid_names_are_rejected_before_authentication(port: int, bad: str) -> None:
    for path in (f"/v1/jobs/{bad}/dog/attempts/1", f"/v1/jobs/team/{bad}/attempts/1"):
        # 401 would mean that the token is reviewed.
        assert await asyncio.to_thread(post, port, path) == 404, path
    for attempt in ("-1", "1e1", "1%2F2", "1234567", ""):
        assert await asyncio.to_thread(post, port, f"/v1/jobs/team/dog/attempts/{attempt}") == 404, attempt
    assert await asyncio.to_thread(post, port, "/v1/jobs/team/dog/attempts/1") == 401


def meta(namespace: str, name: str) -> dict[str, str]:
    return {"namespace": namespace, "name": name}
