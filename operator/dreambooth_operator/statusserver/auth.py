"""Authentication of trainers by their pods' audience-bound tokens, which the API server reviews."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import TOKEN_REVIEWS, Json, part

_CACHE_SECONDS = 60
_MAX_CACHED = 5000
_ACCOUNT = "system:serviceaccount:"
_POD_NAME = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True, slots=True)
class Caller:
    """A service account, and the pod that its token is bound to; empty if it is bound to none."""

    namespace: str
    account: str
    pod: str


class TokenChecker:
    """Authenticates by TokenReview. Valid tokens are cached for a minute, invalid ones are not cached."""

    def __init__(self, api: Api, audience: str, *, clock: Callable[[], float]) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._known: dict[bytes, tuple[float, Caller]] = {}

    async def check(self, token: str) -> Caller | None:
        """The caller that a token authenticates; None if it is not valid for the audience."""
        digest, now = hashlib.sha256(token.encode()).digest(), self._clock()
        known = self._known.get(digest)
        if known and known[0] > now:
            return known[1]
        caller = await self._review(token)
        if caller is None:
            self._known.pop(digest, None)
        else:
            if len(self._known) >= _MAX_CACHED:
                self._known = {d: k for d, k in self._known.items() if k[0] > now}
            self._known[digest] = (now + _CACHE_SECONDS, caller)
        return caller

    async def _review(self, token: str) -> Caller | None:
        body: Json = {
            "apiVersion": TOKEN_REVIEWS.api_version,
            "kind": TOKEN_REVIEWS.kind,
            "spec": {"token": token, "audiences": [self._audience]},
        }
        status = part(await self._api.request("POST", TOKEN_REVIEWS.path(), body=body), "status")
        user = part(status, "user")
        name: str = user.get("username", "")
        # An authenticator without support for audiences returns none: then the token may be meant for another service.
        if not status.get("authenticated") or self._audience not in (status.get("audiences") or ()):
            return None
        if not name.startswith(_ACCOUNT):
            return None
        namespace, _, account = name.removeprefix(_ACCOUNT).partition(":")
        pods: list[str] = part(user, "extra").get(_POD_NAME) or [""]
        return Caller(namespace, account, pods[0])
