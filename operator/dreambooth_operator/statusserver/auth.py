"""Authentication of trainers by their pods' audience-bound tokens, which the API server reviews."""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Callable
from dataclasses import dataclass

from pydantic_core import from_json

from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import TOKEN_REVIEWS, Json, part
from dreambooth_operator.machinery.ttlcache import TtlCache

_CACHE_SECONDS = 60
_MAX_CALLERS = 20_000
_MAX_REFUSALS = 5_000
_MAX_TOKEN_LENGTH = 16 * 1024
_MAX_SKEW_SECONDS = 60  # between the clocks of this node and of the API server
_JWT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+")
_ACCOUNT = "system:serviceaccount:"
_POD_NAME = "authentication.kubernetes.io/pod-name"


@dataclass(frozen=True, slots=True)
class Caller:
    """A service account, and the pod that its token is bound to; empty if it is bound to none."""

    namespace: str
    account: str
    pod: str


def may_be_valid(token: str, audience: str, now: float) -> bool:
    """Whether `token` is a JWT of a service account for `audience` that has not expired. The signature is not read."""
    if len(token) > _MAX_TOKEN_LENGTH or not _JWT.fullmatch(token):
        return False
    payload = token.split(".")[1]
    try:
        claims: Json = from_json(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        audiences, expires, subject = claims["aud"], claims["exp"], claims["sub"]
    except (ValueError, KeyError, TypeError):
        return False
    return (
        isinstance(subject, str)
        and subject.startswith(_ACCOUNT)
        and isinstance(audiences, list | str)
        and audience in ([audiences] if isinstance(audiences, str) else audiences)
        and isinstance(expires, int | float)
        and expires + _MAX_SKEW_SECONDS > now
    )


class TokenChecker:
    """Authenticates by TokenReview. The answers are cached for a minute, refusals too.

    Refusals have a cache of their own, so that invalid tokens, of which anybody can make many, displace no valid one.
    Tokens that cannot be valid cause no request, so that any pod that reaches the port cannot make the operator flood
    the API server. `clock` is the time since the epoch, in seconds.
    """

    def __init__(self, api: Api, audience: str, *, clock: Callable[[], float]) -> None:
        self._api = api
        self._audience = audience
        self._clock = clock
        self._callers: TtlCache[bytes, Caller] = TtlCache(
            ttl_seconds=_CACHE_SECONDS, max_entries=_MAX_CALLERS, clock=clock
        )
        self._refused: TtlCache[bytes, bool] = TtlCache(
            ttl_seconds=_CACHE_SECONDS, max_entries=_MAX_REFUSALS, clock=clock
        )

    async def check(self, token: str) -> Caller | None:
        """The caller that a token authenticates; None if it is not valid for the audience."""
        if not may_be_valid(token, self._audience, self._clock()):
            return None
        digest = hashlib.sha256(token.encode()).digest()
        caller = self._callers.get(digest)
        if caller or self._refused.get(digest):
            return caller
        caller = await self._review(token)
        if caller:
            self._callers.set(digest, caller)
        else:
            self._refused.set(digest, True)
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
