"""Leader election on a Lease. A process that loses the lease must exit.

Two leaders are never active at the same time: a holder that has not renewed the lease for `renew_seconds` stops, and
other processes take a lease over only after it has been unchanged for `lease_seconds` by their own clocks, so clocks
need not be synchronized. Because `renew_seconds < lease_seconds`, there is a gap in which no process leads.
"""

from __future__ import annotations

import asyncio
import datetime
import logging
from collections.abc import Awaitable, Callable
from typing import NoReturn

from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import LEASES, Json, Key, part

log = logging.getLogger(__name__)


class LeaseLostError(Exception):
    """The lease could not be renewed in time. Another process may lead already, so this one must stop at once."""


class Lease:
    """A candidate in a leader election.

    Args:
        key: namespace and name of the Lease.
        identity: identity of this process, which must be unique.
        lease_seconds: how long an unchanged lease of another process is respected.
        renew_seconds: how long renewing may fail before this process stops leading.
        retry_seconds: delay between tries to acquire or renew.
    """

    def __init__(
        self,
        api: Api,
        key: Key,
        identity: str,
        *,
        lease_seconds: float = 15,
        renew_seconds: float = 10,
        retry_seconds: float = 2,
    ) -> None:
        if not retry_seconds < renew_seconds < lease_seconds:
            raise ValueError(
                f"retry_seconds {retry_seconds} < renew_seconds {renew_seconds} < lease_seconds {lease_seconds} must "
                "hold, or a leader that cannot renew overlaps with its successor"
            )
        self._api = api
        self._key = key
        self.identity = identity
        self._lease_seconds = lease_seconds
        self._renew_seconds = renew_seconds
        self._retry_seconds = retry_seconds
        self._seen_version = ""
        self._seen_at = 0.0  # by the loop's clock

    async def lead(self, body: Callable[[], Awaitable[None]]) -> None:
        """Acquire the lease, run `body` while it is held, and release it at the end.

        Raises:
            LeaseLostError: the lease could not be kept; `body` was cancelled.
        """
        await self._acquire()
        keeper, work = asyncio.ensure_future(self._keep()), asyncio.ensure_future(body())
        try:
            await asyncio.wait({keeper, work}, return_when=asyncio.FIRST_COMPLETED)
            for task in (keeper, work):
                if task.done():
                    task.result()
        finally:
            keeper.cancel()
            work.cancel()
            await asyncio.gather(keeper, work, return_exceptions=True)
            await self._release()

    async def _acquire(self) -> None:
        while True:
            try:
                if await self._try():
                    log.info("%s is the leader", self.identity)
                    return
            except (ApiError, *CONNECTION_ERRORS) as error:
                log.info("lease %s: %s", self._key, str(error) or type(error).__name__)
            await asyncio.sleep(self._retry_seconds)

    async def _keep(self) -> NoReturn:
        clock = asyncio.get_running_loop().time
        renewed = clock()
        while True:
            await asyncio.sleep(self._retry_seconds)
            left = renewed + self._renew_seconds - clock()
            try:
                before = clock()  # the time since the last renewal starts before the request
                async with asyncio.timeout(max(left, 0)):
                    if not await self._try():
                        raise LeaseLostError(f"{self._key} was taken from {self.identity}")
                renewed = before
            except (ApiError, *CONNECTION_ERRORS) as error:
                if clock() - renewed >= self._renew_seconds:
                    raise LeaseLostError(f"{self._key} not renewed for {self._renew_seconds} s: {error}") from error

    async def _try(self) -> bool:
        """Acquire or renew the lease. Returns False if another process holds it."""
        try:
            lease = await self._api.get(LEASES, self._key)
        except ApiError as error:
            if not error.is_not_found:
                raise
            return await self._write("POST", LEASES.path(self._key.namespace), self._body({}))
        spec = part(lease, "spec")
        holder = spec.get("holderIdentity") or ""
        if holder and holder != self.identity and not self._expired(lease):
            return False
        return await self._write("PUT", LEASES.path(*self._key), self._body(lease))

    def _expired(self, lease: Json) -> bool:
        now = asyncio.get_running_loop().time()
        version = lease["metadata"]["resourceVersion"]
        if version != self._seen_version:
            self._seen_version, self._seen_at = version, now
        seconds = float(lease["spec"].get("leaseDurationSeconds") or self._lease_seconds)
        return now - self._seen_at > seconds

    def _body(self, lease: Json) -> Json:
        """The lease held by this process. The resource version of `lease` makes the write a compare-and-swap."""
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="microseconds").replace("+00:00", "Z")
        old = part(lease, "spec")
        ours = old.get("holderIdentity") == self.identity
        spec: Json = {
            "holderIdentity": self.identity,
            "leaseDurationSeconds": max(1, round(self._lease_seconds)),
            "acquireTime": old.get("acquireTime") or now if ours else now,
            "renewTime": now,
            "leaseTransitions": old.get("leaseTransitions", 0) + (0 if ours or not old else 1),
        }
        metadata = lease.get("metadata") or {"name": self._key.name, "namespace": self._key.namespace}
        return {"apiVersion": LEASES.api_version, "kind": LEASES.kind, "metadata": metadata, "spec": spec}

    async def _write(self, method: str, path: str, body: Json) -> bool:
        try:
            await self._api.request(method, path, body=body)
        except ApiError as error:
            if error.status == 409:  # another process was faster
                return False
            raise
        return True

    async def _release(self) -> None:
        """Let another process lead at once. If this fails, the lease expires."""
        try:
            async with asyncio.timeout(2):
                lease = await self._api.get(LEASES, self._key)
                if lease["spec"].get("holderIdentity") == self.identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._api.request("PUT", LEASES.path(*self._key), body=lease)
        except (ApiError, *CONNECTION_ERRORS) as error:
            log.info("lease %s not released: %s", self._key, error)
