"""Progress reports over TLS: the trainer's client and the status server, over real sockets and on a real API server."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import ssl
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlsplit

import pytest
from devcluster import ControlPlane
from operatorprocess import SYSTEM

from dreambooth_api.progress import ProgressMessage
from dreambooth_operator.app import CA_SECRET, _options
from dreambooth_operator.controller.settings import AUDIENCE
from dreambooth_operator.machinery.certificates import AUTHORITY_LIFETIME, decode_authority
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.connections import ConnectionLimits
from dreambooth_operator.machinery.resources import SECRETS, Json, Key
from dreambooth_operator.machinery.serving import serving
from dreambooth_operator.machinery.tls import ServerTls
from dreambooth_operator.statusserver.auth import TokenChecker
from dreambooth_operator.statusserver.server import StatusServer
from dreambooth_trainer.progress.http import Delivery, Operator

START = datetime.now(UTC)
KEY = Key("system", "ca")


class Secrets:
    """An API server with one Secret, which is empty at first. `now` is its time, and that of the replicas."""

    def __init__(self) -> None:
        self.now = START
        self.writes = 0
        self.secret: Json = {"kind": "Secret", "metadata": {**KEY._asdict(), "resourceVersion": "0"}}

    async def get(self, *_: object) -> Json:
        await asyncio.sleep(0)
        return copy.deepcopy(self.secret)

    async def request(self, method: str, path: str, *, body: Json) -> Json:
        await asyncio.sleep(0)
        assert (method, path) == ("PUT", SECRETS.path(*KEY))
        if body["metadata"]["resourceVersion"] != self.secret["metadata"]["resourceVersion"]:
            raise ApiError(409, "Conflict", "the object has been modified")
        self.writes += 1
        self.secret = {**body, "metadata": {**body["metadata"], "resourceVersion": str(self.writes)}}
        return self.secret

    def replica(self, host: str = "127.0.0.1") -> ServerTls:
        return ServerTls(cast("Api", cast("Any", self)), KEY, host, now=lambda: self.now)


@contextlib.asynccontextmanager
async def reports(tls: ServerTls, limits: ConnectionLimits | None = None) -> AsyncIterator[str]:
    """A status server that no token satisfies. Yields the URL of a job's attempt."""
    none: Any = None
    server = StatusServer(none, TokenChecker(none, AUDIENCE, clock=time.time), cached=lambda _: None, now=lambda: START)
    async with serving(server.app(), "127.0.0.1", 0, limits=limits, tls=tls.context) as port:
        yield f"https://127.0.0.1:{port}/v1/jobs/team/dog/attempts/1"


def trainer(folder: Path, url: str, trusted: str) -> Operator:
    """The client of a trainer that was started with these certificates. Its token is not valid."""
    token, ca_file = folder / "token", folder / f"{hash(trusted)}.crt"
    token.write_text("x")
    ca_file.write_text(trusted)
    return Operator(url, token, ca_file)


def port_of(url: str) -> int:
    port = urlsplit(url).port
    assert port
    return port


async def status_of(operator: Operator) -> str:
    """How the server answers a report. 401 proves that it was received: its token is not valid."""
    tls = ssl.create_default_context(cafile=operator.ca_file)
    reader, writer = await asyncio.open_connection("127.0.0.1", port_of(operator.url), ssl=tls)
    writer.write(b"POST /v1/jobs/team/dog/attempts/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
    line = await reader.readline()
    writer.close()
    return line.split()[1].decode()


async def test_report_is_verified_with_the_given_certificates_only(tmp_path: Path) -> None:
    tls, other = Secrets().replica(), Secrets().replica()
    for each in (tls, other):
        await each.refresh()
    async with reports(tls) as url:
        assert await status_of(trainer(tmp_path, url, tls.trusted())) == "401"
        with pytest.raises(ssl.SSLCertVerificationError):
            await status_of(trainer(tmp_path, url, other.trusted()))
        with pytest.raises(ssl.SSLCertVerificationError):
            await asyncio.open_connection("127.0.0.1", port_of(url), ssl=ssl.create_default_context())


async def test_certificate_of_another_host_is_refused(tmp_path: Path) -> None:
    tls = Secrets().replica("dreambooth-operator.dreambooth-system.svc")
    await tls.refresh()
    async with reports(tls) as url:
        with pytest.raises(ssl.SSLCertVerificationError, match="IP address mismatch"):
            await status_of(trainer(tmp_path, url, tls.trusted()))


async def test_plain_http_is_not_answered() -> None:
    tls = Secrets().replica()
    await tls.refresh()
    async with reports(tls) as url:
        reader, writer = await asyncio.open_connection("127.0.0.1", port_of(url))
        writer.write(b"POST /v1/jobs/team/dog/attempts/1 HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n")
        assert b"HTTP" not in await reader.read()
        writer.close()


async def test_running_trainers_report_while_certificate_and_authority_are_renewed(tmp_path: Path) -> None:
    """The server was set up almost ten years ago. A trainer that started then still runs."""
    secrets = Secrets()
    tls = secrets.replica()
    secrets.now = START - AUTHORITY_LIFETIME + timedelta(days=80)
    await tls.refresh()
    async with reports(tls) as url:
        first = trainer(tmp_path, url, tls.trusted())
        secrets.now = START - timedelta(days=280)
        await tls.refresh()
        second = trainer(tmp_path, url, tls.trusted())
        assert (tls.trusted().count("BEGIN CERTIFICATE"), secrets.writes) == (2, 2), "the successor"
        for days in (40, 11):
            secrets.now = START - timedelta(days=days)
            await tls.refresh()
            assert [await status_of(each) for each in (first, second)] == ["401", "401"]
        secrets.now = START
        await tls.refresh()
        third = trainer(tmp_path, url, tls.trusted())
        assert secrets.writes == 3, "the successor replaces its predecessor"
        assert [await status_of(each) for each in (second, third)] == ["401", "401"]
        with pytest.raises(ssl.SSLCertVerificationError):
            await status_of(first)


async def test_new_connections_use_the_new_certificate(tmp_path: Path) -> None:
    secrets, other = Secrets(), Secrets()
    tls = secrets.replica()
    await tls.refresh()
    async with reports(tls) as url:
        before = trainer(tmp_path, url, tls.trusted())
        assert await status_of(before) == "401"
        await other.replica().refresh()
        secrets.secret = other.secret  # as if somebody had emptied the Secret
        await tls.refresh()
        assert await status_of(trainer(tmp_path, url, tls.trusted())) == "401"
        with pytest.raises(ssl.SSLCertVerificationError):
            await status_of(before)


async def test_replicas_that_start_together_share_one_authority() -> None:
    secrets = Secrets()
    replicas = [secrets.replica() for _ in range(5)]
    await asyncio.gather(*(replica.refresh() for replica in replicas))
    assert secrets.writes == 1
    assert len({replica.trusted() for replica in replicas}) == 1


async def test_damaged_secret_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    secrets = Secrets()
    secrets.secret["data"] = {"ca.crt": "bm8="}
    await secrets.replica().refresh()
    assert decode_authority(secrets.secret["data"])
    assert "is replaced, because its content is damaged" in caplog.text


async def test_unfinished_handshakes_are_limited_and_closed(tmp_path: Path) -> None:
    tls = Secrets().replica()
    await tls.refresh()
    limits = ConnectionLimits(max_open=2, first_request_seconds=1)
    async with reports(tls, limits) as url, asyncio.timeout(30):
        port = port_of(url)
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(2)]
        excess, writer = await asyncio.open_connection("127.0.0.1", port)
        assert await excess.read() == b"", "one connection too many"
        for reader, _ in silent:
            assert await reader.read() == b"", "the handshake takes too long"
        client = trainer(tmp_path, url, tls.trusted())
        assert await status_of(client) == "401", "there is room again"
        for _, each in [*silent, (excess, writer)]:
            each.close()


async def test_rate_of_handshakes_is_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dreambooth_operator.machinery.connections._HANDSHAKE_PAUSE_SECONDS", 3600)
    tls = Secrets().replica()
    await tls.refresh()
    async with reports(tls) as url:
        client = trainer(tmp_path, url, tls.trusted())
        assert await status_of(client) == "401"
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(status_of(client), 0.5)


async def test_failed_handshakes_free_their_places_at_once(tmp_path: Path) -> None:
    tls, other = Secrets().replica(), Secrets().replica()
    for each in (tls, other):
        await each.refresh()
    limits = ConnectionLimits(max_open=1, first_request_seconds=3600)
    async with reports(tls, limits) as url, asyncio.timeout(30):
        for _ in range(3):
            with pytest.raises(ssl.SSLCertVerificationError):
                await status_of(trainer(tmp_path, url, other.trusted()))
            while limits._handshakes:
                await asyncio.sleep(0.01)
        assert not limits._unused
        assert await status_of(trainer(tmp_path, url, tls.trusted())) == "401"


async def test_proxies_of_the_environment_are_not_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A runtime may set one for the Hub. Port 9 of this machine refuses connections."""
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setattr("dreambooth_trainer.progress.http.RETRYABLE_STATUS", set())
    tls = Secrets().replica()
    await tls.refresh()
    async with reports(tls) as url:
        client = trainer(tmp_path, url, tls.trusted())
        answer = await asyncio.to_thread(client.send, ProgressMessage(step=1))
        assert answer.delivery is Delivery.REJECTED, "401 is an answer"


@pytest.mark.parametrize("url", ["http://operator:8082", "operator:8082", "https://"])
def test_progress_url_must_be_https(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        _options([f"--progress-url={url}"])
    assert f"'{url}': must be an HTTPS URL" in capsys.readouterr().err


async def test_replicas_share_the_secret_of_the_manifests(plane: ControlPlane) -> None:
    """With the permissions of the operator's account, on the real API server."""
    kubeconfig = str(plane.kubeconfig_for_account(SYSTEM, "dreambooth-operator"))
    key = Key(SYSTEM, CA_SECRET)
    patch = '[{"op": "add", "path": "/data", "value": null}]'
    plane.kubectl("patch", "secret", CA_SECRET, "-n", SYSTEM, "--type=json", "-p", patch)
    apis = [await Api.connect(kubeconfig) for _ in range(3)]
    try:
        replicas = [ServerTls(api, key, "127.0.0.1", now=lambda: datetime.now(UTC)) for api in apis]
        await asyncio.gather(*(replica.refresh() for replica in replicas))
        assert len({replica.trusted() for replica in replicas}) == 1
        stored = decode_authority(plane.get("secret", CA_SECRET, "-n", SYSTEM)["data"])
        assert stored
        assert stored.trusted() == replicas[0].trusted()
    finally:
        for api in apis:
            await api.close()


async def test_operator_account_can_access_no_other_secret(plane: ControlPlane) -> None:
    plane.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "other", "namespace": SYSTEM}})
    async with await Api.connect(str(plane.kubeconfig_for_account(SYSTEM, "dreambooth-operator"))) as api:
        for request in (
            api.get(SECRETS, Key(SYSTEM, "other")),
            api.request("GET", SECRETS.path(SYSTEM)),
            api.delete(SECRETS, Key(SYSTEM, CA_SECRET)),
            api.create(SECRETS, {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "n", "namespace": SYSTEM}}),
        ):
            with pytest.raises(ApiError, match="Forbidden"):
                await request
