"""Downloads an archive of images from a web server.

The server is chosen by whoever writes a job, so it is not trusted: https only, with a limit on the size, and no
redirect to an address that is not public. Otherwise a public server could make a job read from a private network.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import tempfile
import urllib.request
from typing import IO, Any
from urllib.error import HTTPError, URLError
from urllib.parse import urljoin, urlsplit

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.network import LINK_LOCAL
from dreambooth_trainer.images.selection import FIELD

MAX_REDIRECTS = 5
TIMEOUT_SECONDS = 60
"""Of connecting, and of each read."""
_BLOCK_BYTES = 2**20
_IN_MEMORY_BYTES = 64 * 2**20
_REDIRECTS = {301, 302, 303, 307, 308}
_TRANSIENT = {408, 425, 429}


class AddressError(OSError):
    """A connection to an address that a download must not reach."""


def download(uri: str, max_bytes: int) -> IO[bytes]:
    """The content of an https URL, in memory or in a temporary file, at its start.

    Raises:
        UserError: the server denies access or has no such file, the file is too large, or a redirect is not followed.
        TransientError: the server or the network fails.
    """
    try:
        with _open(uri) as response:
            return _read(uri, response, max_bytes)
    except HTTPError as error:
        if error.code >= 500 or error.code in _TRANSIENT:
            raise TransientError(f"{without_query(uri)}: the server answers {error.code}") from error
        raise _invalid(uri, f"the server answers {error.code}", "check the URL, and that it is still valid") from error
    except (OSError, http.client.HTTPException) as error:
        reason = error.reason if isinstance(error, URLError) else error
        if isinstance(reason, AddressError):
            raise _invalid(uri, str(reason), "use another server") from error
        if isinstance(reason, ssl.SSLCertVerificationError):
            rule = f"has a certificate that is not valid: {reason.verify_message}"
            raise _invalid(uri, rule, "use another server, or name its authority in SSL_CERT_FILE") from error
        raise TransientError(f"{without_query(uri)} could not be read: {reason}") from error


def _open(uri: str) -> http.client.HTTPResponse:
    """The response of the server, after redirects. The body of a redirect is not read."""
    url, redirected = uri, False
    for _ in range(MAX_REDIRECTS + 1):
        opener = urllib.request.build_opener(_NoRedirects(), _Connections(redirected=redirected))
        try:
            return opener.open(url, timeout=TIMEOUT_SECONDS)
        except HTTPError as error:
            location = error.headers.get("Location")
            if error.code not in _REDIRECTS or not location:
                raise
            target = urljoin(url, location)
        if urlsplit(target).scheme != "https":
            raise _invalid(uri, f"redirects to {urlsplit(target).scheme}://, which is not followed", "use https://")
        redirected = redirected or urlsplit(target).netloc != urlsplit(url).netloc
        url = target
    raise _invalid(uri, f"redirects more than {MAX_REDIRECTS} times", "use the URL that it leads to")


def _read(uri: str, response: http.client.HTTPResponse, max_bytes: int) -> IO[bytes]:
    file: IO[bytes] = tempfile.SpooledTemporaryFile(_IN_MEMORY_BYTES)  # noqa: SIM115 - the caller closes it
    while block := response.read(_BLOCK_BYTES):
        file.write(block)
        if file.tell() > max_bytes:
            file.close()
            rule = f"has more than {max_bytes // 2**20:,} MiB"
            raise _invalid(uri, rule, "use an archive with the 3-5 best images")
    if response.length:  # fewer bytes than Content-Length, which `read` does not report
        file.close()
        raise http.client.IncompleteRead(b"", response.length)
    file.seek(0)
    return file


def _invalid(uri: str, rule: str, remedy: str) -> UserError:
    return UserError(ValidationIssue(FIELD, without_query(uri), rule, remedy))


def without_query(uri: str) -> str:
    """A URL without its query, which may contain a signature."""
    return uri.partition("?")[0]


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> None:
        return None


class _Connections(urllib.request.HTTPSHandler):
    """Checks the address of the server before the request is sent: a name may resolve to any address."""

    def __init__(self, *, redirected: bool) -> None:
        self._tls = ssl.create_default_context()
        super().__init__(context=self._tls)
        self._redirected = redirected

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        redirected = self._redirected
        proxied: bool = getattr(req, "_tunnel_host", None) is not None  # the proxy connects to the server

        class Connection(http.client.HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                if not proxied:
                    check_address(self.sock, redirected=redirected)

        return self.do_open(Connection, req, context=self._tls)


def check_address(connected: socket.socket, *, redirected: bool) -> None:
    """Check the address that a socket is connected to.

    Raises:
        AddressError: it is one of those at which clouds serve credentials; or it is not public, after a redirect.
    """
    address = ipaddress.ip_address(connected.getpeername()[0])
    address = getattr(address, "ipv4_mapped", None) or address
    metadata = any(address in ipaddress.ip_network(block) for block in LINK_LOCAL)
    if metadata or (redirected and not address.is_global):
        connected.close()
        kind = "redirects to" if redirected else "is at"
        raise AddressError(f"{kind} the address {address}, which is not public")
