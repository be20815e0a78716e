"""`POST /v1/jobs/<namespace>/<name>/attempts/<n>`: a trainer tells where it is.

A report is written into the job's status, under a field manager of its own, before it is answered: what
was answered with 202 survives this process. Progress within a phase is written at most every ten
seconds, and in between does not even cost a read; what is final (a phase, class images, the last step, scores, an
output, a failure) is written at once.

The latest attempt may report also after its RayJob ended, since its last report may be delayed: it counts for the
conditions of the job until the next attempt begins or the job is deleted.

Answers: 202 taken. Try again: 401 no valid token (the kubelet replaces it), 503 the API server is away.
Values of a report that are not valid, and unknown fields, are ignored: the trainer may be newer than the operator.
Give up: 400 no JSON object; 403 not this job's pod; 404 no such job, or no name of one; 409 a later attempt has
begun, or the job is being deleted; 413 too large.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from aiohttp import web

from dreambooth_api.fields import DNS_LABEL
from dreambooth_api.progress import ProgressMessage, parse_message
from dreambooth_api.status import ReportedStatus
from dreambooth_operator.controller.names import attempt_name, base_name
from dreambooth_operator.controller.observed import Job, read_job
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key
from dreambooth_operator.resources import JOBS
from dreambooth_operator.statusserver.auth import Caller, TokenChecker
from dreambooth_operator.statusserver.merge import merge, news_of

log = logging.getLogger(__name__)
FIELD_MANAGER = "dreambooth-progress"
_MOST_BYTES = 64 * 1024
_WRITE_SECONDS = 10.0
_MOST_TRIES = 5
# Matched against the raw path, in which %2F stays %2F: other names are 404 before anything is asked of anybody.
_LABEL = DNS_LABEL.strip("^$")
_ROUTE = f"/v1/jobs/{{namespace:{_LABEL}}}/{{name:{_LABEL}}}/attempts/{{attempt:[0-9]{{1,6}}}}"


@dataclass(frozen=True, slots=True)
class _Written:
    """The last report of an attempt that was written: when, by whom, and the part of it that should not wait."""

    time: float
    caller: Caller
    news: object


class Endpoint:
    """See the module. `clock` counts seconds and only goes forward."""

    def __init__(self, api: Api, tokens: TokenChecker, *, clock: Callable[[], float]) -> None:
        self._api = api
        self._tokens = tokens
        self._clock = clock
        self._written: dict[tuple[Key, int], _Written] = {}

    def app(self) -> web.Application:
        """The application that serves the endpoint."""
        app = web.Application(client_max_size=_MOST_BYTES)
        app.add_routes([web.post(_ROUTE, self._post)])
        return app

    async def _post(self, request: web.Request) -> web.Response:
        key = Key(request.match_info["namespace"], request.match_info["name"])
        attempt = int(request.match_info["attempt"])
        scheme, _, token = request.headers.get("Authorization", "").partition(" ")
        try:
            caller = await self._tokens.check(token) if scheme == "Bearer" and token else None
            if caller is None:
                return _say(401, "send the pod's token for audience dreambooth-progress as Authorization: Bearer")
            if caller.namespace != key.namespace:
                return _say(403, f"a pod of namespace {caller.namespace} cannot report for {key}")
            body = await request.read()
            try:
                report, ignored = parse_message(body)
            except ValueError as error:
                return _say(400, f"the report is not understood: {error}")
            if ignored:
                log.debug("report for %s: values ignored that are not valid: %s", key, ", ".join(ignored))
            return await self._take(key, attempt, caller, report)
        except ApiError as error:
            if error.is_not_found:
                return _say(404, f"there is no DreamBoothJob {key}")
            if error.status in (400, 422):
                return _say(400, f"the API server does not take this report: {error.message}")
            log.warning("report for %s: %s", key, error)
            return _say(503, "the API server refused for now; try again")
        except CONNECTION_ERRORS:
            return _say(503, "the API server is away; try again")

    async def _take(self, key: Key, attempt: int, caller: Caller, report: ProgressMessage) -> web.Response:
        last, news = self._written.get((key, attempt)), news_of(report)
        if last and last.caller == caller and last.news == news and self._clock() - last.time < _WRITE_SECONDS:
            return _say(202, "taken; not written, too soon after the last")
        for _ in range(_MOST_TRIES):
            job = read_job(await self._api.get(JOBS, key))
            if refusal := _refuse(job, attempt, caller):
                return refusal
            try:
                await self._write(job, merge(job.status, report, attempt, datetime.now(UTC)))
            except ApiError as error:
                if error.is_conflict:
                    continue
                raise
            self._remember((key, attempt), _Written(self._clock(), caller, news))
            return _say(202, "written")
        return _say(503, "the job changes too fast; try again")

    async def _write(self, job: Job, status: ReportedStatus) -> None:
        obj: Json = {
            "apiVersion": JOBS.api_version,
            "kind": JOBS.kind,
            "metadata": {**job.key._asdict(), "resourceVersion": job.resource_version},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        await self._api.apply(JOBS, obj, manager=FIELD_MANAGER, subresource="status")

    def _remember(self, attempt: tuple[Key, int], written: _Written) -> None:
        if len(self._written) > 10_000:
            least = written.time - _WRITE_SECONDS
            self._written = {key: old for key, old in self._written.items() if old.time > least}
        self._written[attempt] = written


def _refuse(job: Job, attempt: int, caller: Caller) -> web.Response | None:
    """Why `caller` may not report for this attempt of `job`; None if it may."""
    if caller.account != base_name(job):
        return _say(403, f"service account {caller.account} is not that of DreamBoothJob {job.key}")
    if caller.pod and not caller.pod.startswith(f"{attempt_name(job, attempt)}-"):
        return _say(403, f"pod {caller.pod} does not belong to attempt {attempt} of DreamBoothJob {job.key}")
    if attempt != job.status.attempts:
        return _say(409, f"attempt {attempt} is over, attempt {job.status.attempts} has begun; stop")
    if job.deleted:
        return _say(409, f"DreamBoothJob {job.key} is being deleted; stop")
    return None


def _say(status: int, message: str) -> web.Response:
    return web.json_response({"message": message}, status=status)
