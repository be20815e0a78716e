"""Archives on web servers: a limit on the size, redirects to public addresses only, and messages without signatures."""

from __future__ import annotations

import io
import re
import ssl
import threading
import zipfile
from collections.abc import Iterator
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dreambooth_api.errors import TransientError, UserError
from dreambooth_api.subject import ImageSource
from dreambooth_operator.machinery.certificates import issue, renew_authority
from dreambooth_trainer.images import read_folder, selection
from dreambooth_trainer.images.download import AddressError, check_address

AUTHORITY = renew_authority(None, "test", datetime.now(UTC))


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("photos/0.png", b"zero")
        file.writestr("photos/1.png", b"one")
    return buffer.getvalue()


class Handler(BaseHTTPRequestHandler):
    other_port = 0

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        port = self.server.server_address[1]
        locations = {
            "/moved.zip": "/photos.zip",
            "/loop.zip": "/loop.zip",
            "/plain.zip": f"http://127.0.0.1:{port}/photos.zip",
            "/elsewhere.zip": f"https://localhost:{self.other_port}/photos.zip",
        }
        if location := locations.get(path):
            self.send_response(302)
            self.send_header("Location", location)
            self.end_headers()
            return
        status = {"/photos.zip": 200, "/busy.zip": 503}.get(path, 404)
        self.send_response(403 if query == "signature=expired" else status)
        self.end_headers()
        self.wfile.write(archive() if status == 200 else b"")

    def log_message(self, *args: object) -> None: ...


def serve(name: str, folder: Path) -> ThreadingHTTPServer:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    certificate = issue(AUTHORITY, name, datetime.now(UTC))
    tls, file = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), folder / f"{name}.pem"
    file.write_bytes(certificate.key_pem() + certificate.certificate_pem())
    tls.load_cert_chain(file)
    server.socket = tls.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    (tmp_path / "ca.pem").write_text(AUTHORITY.trusted())
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
    server = serve("127.0.0.1", tmp_path)
    yield f"https://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


@pytest.mark.parametrize("path", ["photos.zip", "moved.zip", "photos.zip?signature=abc"])
def test_an_archive_is_read_also_after_a_redirect_on_the_same_server(url: str, path: str) -> None:
    assert [(image.name, image.data) for image in read_folder(f"{url}/{path}").images] == [
        ("0.png", b"zero"), ("1.png", b"one"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("path", "kind", "message"),
    [
        ("none.zip", UserError, "the server answers 404; check the URL"),
        ("photos.zip?signature=expired", UserError, "the server answers 403; check the URL"),
        ("busy.zip", TransientError, "the server answers 503"),
        ("loop.zip", UserError, "redirects more than 5 times"),
        ("plain.zip", UserError, "redirects to http://, which is not followed"),
    ],
)
def test_what_cannot_be_downloaded_is_explained(url: str, path: str, kind: type[Exception], message: str) -> None:
    with pytest.raises(kind, match=re.escape(message)) as caught:
        read_folder(f"{url}/{path}")
    assert "signature" not in str(caught.value), "a query can be a credential"
    assert f"{url}/{path.partition('?')[0]}" in str(caught.value)


def test_a_redirect_to_a_private_address_is_not_followed(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = serve("localhost", tmp_path)
    port = other.server_address[1]
    monkeypatch.setattr(Handler, "other_port", port)
    assert len(read_folder(f"https://localhost:{port}/photos.zip").images) == 2, "named by the job, it is read"
    with pytest.raises(UserError, match=r"redirects to the address 127.0.0.1, which is not public; use another server"):
        read_folder(f"{url}/elsewhere.zip")
    other.shutdown()


@pytest.mark.parametrize(
    ("address", "redirected", "allowed"),
    [
        ("10.1.2.3", False, True), ("10.1.2.3", True, False), ("8.8.8.8", True, True),
        ("169.254.169.254", False, False), ("fd00:ec2::254", False, False), ("fd00::1", True, False),
         ("fe80::1", False, False), ("::ffff:10.1.2.3", True, False),
        ("::ffff:169.254.169.254", False, False),
    ],
)  # fmt: skip
def test_addresses_of_clouds_and_redirects_to_private_networks_are_refused(
    address: str, redirected: bool, allowed: bool
) -> None:
    closed: list[bool] = []
    connected: Any = SimpleNamespace(getpeername=lambda: (address, 443), close=lambda: closed.append(True))
    if allowed:
        check_address(connected, redirected=redirected)
    else:
        with pytest.raises(AddressError, match="which is not public"):
            check_address(connected, redirected=redirected)
    assert bool(closed) is not allowed


def test_a_large_file_is_not_downloaded_to_its_end(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "MAX_TOTAL_BYTES", 100)
    with pytest.raises(UserError, match=r"has more than 0 MiB; use an archive with the 3-5 best images"):
        read_folder(f"{url}/photos.zip")


def test_an_unknown_certificate_is_an_error_of_the_user(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SSL_CERT_FILE")
    with pytest.raises(UserError, match="has a certificate that is not valid"):
        read_folder(f"{url}/photos.zip")


@pytest.mark.parametrize(
    "uri",
    [
        "http://example.org/x.zip", "https://example.org/photos", "https://user:pass@example.org/x.zip",
        "https://example.org/x.zip#a", "https://exa mple.org/x.zip", "https://EXAMPLE.org/x.zip", "https:///x.zip",
    ],
)  # fmt: skip
def test_other_urls_are_no_source(uri: str) -> None:
    with pytest.raises(ValueError, match="uri"):
        ImageSource(uri=uri)
    assert ImageSource(uri="https://example.org:8443/a%20b/x.ZIP?sig=a:b/c").uri
