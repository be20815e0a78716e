"""HTTP server for progress reports: `POST /v1/jobs/<namespace>/<name>/attempts/<n>`.

A report is applied to the job's status, with a separate field manager, before the response is sent: a report that was
answered with 202 is durable. A new phase, class images, the last step, scores, an output and a failure are written at
once. Within a second of the last write, only the first output and the first failure of an attempt are, because they are
in the trainer's last message. Progress within a phase is written once per interval, so that all jobs together stay
within a budget of writes (see `budget`); other reports in between cost no request to the API server. The reply contains
the interval as `nextReportSeconds`.

The job is taken from the cache. A stale one cannot be written, because the write is a compare-and-swap, and cannot
cause a rejection: in both cases, or if the cache has no such job, it is read from the API server. A rejection that this
has confirmed stays right, because accounts belong to one job and attempts do not start again. It is remembered for a
minute, and an account or a pod that belongs to no job of that name is rejected without a request.

The latest attempt may still report after its RayJob has ended, because its last report may be delayed. Its reports
count until the next attempt starts or the job is deleted.

Invalid values and unknown fields of a report are ignored, because the trainer may be newer than the operator.

Responses:
- 202: accepted.
- Retry: 401 the token is not valid (the kubelet rotates it), 503 the API server is not available, the body is slow,
  too many reports arrive at once, or the job reports too often.
- Do not retry: 400 not a JSON object; 403 not a pod of this job; 404 the job does not exist; 409 a later attempt has
  started, or the job is being deleted; 413 the body is too large.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable
from datetime import datetime

from aiohttp import web

from dreambooth_api.fields import DNS_LABEL
from dreambooth_api.merge import is_milestone, is_outcome, merge
from dreambooth_api.progress import ProgressMessage, ProgressReply, parse_message, report_path
from dreambooth_api.status import ReportedStatus
from dreambooth_operator.controller.names import base_name, may_be_base_name
from dreambooth_operator.controller.observed import Job, read_job
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key
from dreambooth_operator.machinery.ttlcache import TtlCache
from dreambooth_operator.resources import JOBS
from dreambooth_operator.statusserver.auth import Caller, TokenChecker
from dreambooth_operator.statusserver.budget import COUNTED_SECONDS, is_due, is_too_soon, report_interval_seconds

log = logging.getLogger(__name__)
FIELD_MANAGER = "dreambooth-progress"
_MAX_BYTES = 64 * 1024
_MAX_TRIES = 5
_MAX_REPORTING_JOBS = 100_000
_MAX_IN_FLIGHT = 256
_REJECTION_SECONDS = 60
_MAX_REJECTIONS = 20_000
_REQUEST_SECONDS = 10  # twice what the trainer waits
_Rejection = tuple[int, str]  # status code and message
# Matched against the raw path, in which %2F stays encoded: invalid names get 404 before any request is made.
_LABEL = DNS_LABEL.strip("^$")
_ROUTE = report_path(f"{{namespace:{_LABEL}}}", f"{{name:{_LABEL}}}", "{attempt:[0-9]{1,6}}")


class StatusServer:
    """The HTTP server. `cached` returns a job as cached, or None; `now` returns the time of the wall clock, in UTC.

    `on_lost` is called with the key of a job whose report the API server did not store.
    """

    def __init__(
        self, api: Api, tokens: TokenChecker, *, cached: Callable[[Key], Job | None], now: Callable[[], datetime]
    ) -> None:
        self._api = api
        self._tokens = tokens
        self._cached = cached
        self._now = now
        self._reporting: TtlCache[Key, bool] = TtlCache(
            ttl_seconds=COUNTED_SECONDS, max_entries=_MAX_REPORTING_JOBS, clock=lambda: now().timestamp()
        )
        self._rejected: TtlCache[tuple[Key, int, Caller], _Rejection] = TtlCache(
            ttl_seconds=_REJECTION_SECONDS, max_entries=_MAX_REJECTIONS, clock=lambda: now().timestamp()
        )
        self._in_flight = 0
        self.on_lost: Callable[[Key], None] = lambda _: None

    def app(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=_MAX_BYTES)
        app.add_routes([web.post(_ROUTE, self._post)])
        return app

    async def _post(self, request: web.Request) -> web.Response:
        try:
            async with asyncio.timeout(_REQUEST_SECONDS):
                # Before the report counts: clients that send slowly must not keep those of others from being processed.
                body = await request.read()
                if self._in_flight >= _MAX_IN_FLIGHT:
                    return _respond(503, "too many reports at once; retry")
                self._in_flight += 1
                try:
                    return await self._report(request, body)
                finally:
                    self._in_flight -= 1
        except TimeoutError:
            return _respond(503, f"the report took longer than {_REQUEST_SECONDS} s; retry")

    async def _report(self, request: web.Request, body: bytes) -> web.Response:
        key = Key(request.match_info["namespace"], request.match_info["name"])
        attempt = int(request.match_info["attempt"])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            caller = await self._tokens.check(token) if scheme == "Bearer" and token else None
            if caller is None:
                return _respond(401, "send the pod's token for audience dreambooth-progress as Authorization: Bearer")
            if caller.namespace != key.namespace:
                return _respond(403, f"a pod in namespace {caller.namespace} must not report for {key}")
            try:
                report, ignored = parse_message(body)
            except ValueError as error:
                return _respond(400, f"the report is not valid: {error}")
            if ignored:
                log.debug("report for %s: ignored invalid values: %s", key, ", ".join(ignored))
            return await self._answer(key, attempt, caller, report)
        except ApiError as error:
            if error.status in (400, 422):
                return _respond(400, f"the API server rejected the report: {error.message}")
            log.warning("report for %s: %s", key, error)
            return _respond(503, "the API server returned an error; retry")
        except CONNECTION_ERRORS:
            return _respond(503, "the API server is not available; retry")

    async def _answer(self, key: Key, attempt: int, caller: Caller, report: ProgressMessage) -> web.Response:
        rejection = _foreign(key, attempt, caller) or self._rejected.get((key, attempt, caller))
        if rejection is None:
            try:
                return await self._accept(key, attempt, caller, report)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                rejection = (404, f"DreamBoothJob {key} does not exist")
                self._rejected.set((key, attempt, caller), rejection)
        return _respond(*rejection)

    async def _accept(self, key: Key, attempt: int, caller: Caller, report: ProgressMessage) -> web.Response:
        async for job, is_cached in self._versions(key):
            if rejection := _reject(job, attempt, caller):
                if is_cached:
                    continue
                if attempt <= job.status.attempts:  # a later one may still start
                    self._rejected.set((key, attempt, caller), rejection)
                return _respond(*rejection)
            self._reporting.set(key, True)
            seconds = report_interval_seconds(len(self._reporting), job.valid_run_policy.progress_deadline_seconds)
            now = self._now()
            merged = merge(job.status, report, attempt, now)
            written = job.status.report.time if job.status.report else None
            if not is_milestone(job.status, merged):
                if not is_due(written, now, seconds):
                    return _accepted("accepted; not written, because the last write was too recent", seconds)
            elif is_too_soon(written, now) and not is_outcome(job.status, merged):
                return _respond(503, "the job reports too often; retry")
            try:
                await self._write(job, merged)
            except ApiError as error:
                if error.is_conflict:
                    continue
                if error.is_transient:
                    self.on_lost(key)
                raise
            except (asyncio.CancelledError, *CONNECTION_ERRORS):  # cancelled after _REQUEST_SECONDS
                self.on_lost(key)
                raise
            return _accepted("written", seconds)
        return _respond(503, "the job changes too often; retry")

    async def _versions(self, key: Key) -> AsyncIterator[tuple[Job, bool]]:
        """The job as cached, then, while the caller needs a newer one, as the API server has it."""
        if job := self._cached(key):
            yield job, True
        for _ in range(_MAX_TRIES):
            yield read_job(await self._api.get(JOBS, key)), False

    async def _write(self, job: Job, status: ReportedStatus) -> None:
        obj: Json = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {**job.key._asdict(), "resourceVersion": job.resource_version},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        await self._api.apply(JOBS, obj, manager=FIELD_MANAGER, subresource="status")


def _foreign(key: Key, attempt: int, caller: Caller) -> _Rejection | None:
    """Why a caller may report for no job of this name, as far as the names say; None if it may."""
    if not may_be_base_name(caller.account, key.name):
        return 403, f"service account {caller.account} does not belong to DreamBoothJob {key}"
    if caller.pod and not caller.pod.startswith(f"{caller.account}-{attempt}-"):
        return 403, f"pod {caller.pod} does not belong to attempt {attempt} of DreamBoothJob {key}"
    return None


def _reject(job: Job, attempt: int, caller: Caller) -> _Rejection | None:
    """Why a caller that `_foreign` admits may not report for this attempt of the job; None if it may."""
    if caller.account != base_name(job):
        return 403, f"service account {caller.account} does not belong to DreamBoothJob {job.key}"
    if attempt != job.status.attempts:
        return 409, f"attempt {attempt} has ended, the latest attempt is {job.status.attempts}; stop"
    if job.deleted:
        return 409, f"DreamBoothJob {job.key} is being deleted; stop"
    return None


def _accepted(message: str, next_report_seconds: int) -> web.Response:
    reply = ProgressReply(message=message, next_report_seconds=next_report_seconds)
    return web.Response(body=reply.to_json(), status=202, content_type="application/json")


def _respond(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)
