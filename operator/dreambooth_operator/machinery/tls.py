"""TLS of one HTTPS server that runs in several replicas.

The replicas share an authority in a Secret, which must exist and may be empty. Each replica issues itself a server
certificate, which it keeps in memory only.
"""

from __future__ import annotations

import asyncio
import logging
import ssl
import tempfile
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

from dreambooth_operator.machinery.certificates import (
    Authority,
    Pair,
    decode_authority,
    encode_authority,
    is_due,
    issue,
    renew_authority,
)
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import SECRETS, Json, Key, part

log = logging.getLogger(__name__)
_CHECK_SECONDS = 60.0
_RETRY_SECONDS = 5.0


class ServerTls:
    """The TLS settings of a server for `host`, which follow the authority in the Secret `key`.

    Attributes:
        context: new connections use the certificate that it has at that moment, so the server need not restart.
    """

    def __init__(self, api: Api, key: Key, host: str, *, now: Callable[[], datetime]) -> None:
        self._api = api
        self._key = key
        self._host = host
        self._now = now
        self._authority: Authority | None = None
        self._certificate: Pair | None = None
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.num_tickets = 0  # clients connect for one request

    def trusted(self) -> str:
        """The certificates that a new client must trust, in PEM."""
        assert self._authority is not None, "refresh() or start() first"
        return self._authority.trusted()

    async def start(self) -> None:
        """Return once there is a certificate. Errors are logged and retried."""
        while not await self._try_refresh():
            await asyncio.sleep(_RETRY_SECONDS)

    async def run(self) -> None:
        """Renew forever. Errors are logged and retried; the certificate is replaced long before it expires."""
        while True:
            await asyncio.sleep(_CHECK_SECONDS)
            await self._try_refresh()

    async def refresh(self) -> None:
        """Read the Secret, and renew the authority and the certificate if they are due.

        Raises:
            ApiError: the Secret does not exist, or cannot be read or written.
            one of CONNECTION_ERRORS: the API server did not respond.
        """
        authority = await self._shared_authority()
        now = self._now()
        if self._certificate is None or is_due(self._certificate, authority, now):
            certificate = issue(authority, self._host, now)
            _load(self.context, certificate)
            self._certificate = certificate
            log.info("new server certificate for %s until %s", self._host, certificate.certificate.not_valid_after_utc)
        self._authority = authority

    async def _try_refresh(self) -> bool:
        try:
            await self.refresh()
        except (ApiError, *CONNECTION_ERRORS) as error:
            rule = "it must exist, and this account needs the verbs get and update for it"
            log.warning("Secret %s: %s; %s", self._key, str(error) or type(error).__name__, rule)
            return False
        return True

    async def _shared_authority(self) -> Authority:
        """The authority in the Secret. Replicas that renew it at the same time all return the one that was stored."""
        while True:
            secret = await self._api.get(SECRETS, self._key)
            old = self._decode(secret)
            new = renew_authority(old, self._key.name, self._now())
            if new is old:
                return new
            try:
                # The resource version makes it a compare-and-swap.
                body = {**secret, "data": encode_authority(new)}
                await self._api.request("PUT", SECRETS.path(*self._key), body=body)
            except ApiError as error:
                if not error.is_conflict:
                    raise
                continue
            log.info("the certificate authority in Secret %s was renewed", self._key)
            return new

    def _decode(self, secret: Json) -> Authority | None:
        try:
            return decode_authority(part(secret, "data"))
        except ValueError as error:
            log.warning("Secret %s is replaced, because its content is damaged: %s", self._key, error)
            return None


def _load(context: ssl.SSLContext, certificate: Pair) -> None:
    """Let new connections of `context` use a certificate. The library reads it from a file only."""
    with tempfile.TemporaryDirectory() as folder:  # of mode 0700
        file = Path(folder) / "server.pem"
        file.write_bytes(certificate.key_pem() + certificate.certificate_pem())
        context.load_cert_chain(file)
