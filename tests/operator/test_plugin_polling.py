"""Commands that wait for a job, while the API server does not always answer. The API is scripted."""

from __future__ import annotations

import asyncio
import time
from typing import Any, cast

import aiohttp
import pytest
from click.testing import CliRunner

from dreambooth_operator.kubectl_plugin import connect, control, polling, show, wait
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.connect import Cluster
from dreambooth_operator.kubectl_plugin.wait import wait_for
from dreambooth_operator.kubectl_plugin.wanted import Wanted
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key

KEY = Key("team", "my-dog")
GONE = ApiError(404, "NotFound", 'dreamboothjobs.dreambooth.dev "my-dog" not found')
FORBIDDEN = ApiError(403, "Forbidden", "no")
OUTAGE = (ApiError(503, "ServiceUnavailable", "etcd is down"), aiohttp.ServerDisconnectedError(), TimeoutError())


def job(phase: str) -> Json:
    return {"metadata": {"name": "my-dog", "namespace": "team", "uid": "1"}, "status": {"phase": phase}}


class ScriptedApi:
    """Answers requests of a job with the given objects and errors, the last one again and again."""

    host, namespace, deletes = "https://api", "team", True

    def __init__(self, *answers: Json | Exception) -> None:
        self.answers = list(answers)

    async def get(self, *_: object) -> Json:
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def delete(self, *_: object, **__: object) -> bool:
        return self.deletes

    async def __aenter__(self) -> ScriptedApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


def scripted(*answers: Json | Exception) -> Cluster:
    return Cluster(cast("Api", ScriptedApi(*answers)), "team", ())


@pytest.fixture(autouse=True)
def _polls_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (polling, wait, show, control):
        monkeypatch.setattr(module, "POLL_SECONDS", 0.001)


def test_wait_survives_an_outage_after_the_first_answer() -> None:
    met = scripted(job("Running"), *OUTAGE, job("Succeeded"))
    asyncio.run(wait_for(met, KEY, Wanted("phase", "succeeded"), 3600))
    asyncio.run(wait_for(scripted(job("Running"), *OUTAGE, GONE), KEY, Wanted("delete"), 3600))
    for error in OUTAGE:
        with pytest.raises(type(error)):
            asyncio.run(wait_for(scripted(error, job("Succeeded")), KEY, Wanted("phase", "succeeded"), 3600))


def test_wait_ends_with_the_error_that_lasts_or_is_final() -> None:
    for seconds, error in ((0.05, OUTAGE[0]), (3600, FORBIDDEN), (3600, GONE)):
        with pytest.raises(ApiError) as caught:
            asyncio.run(wait_for(scripted(job("Running"), error), KEY, Wanted("phase", "succeeded"), seconds))
        assert caught.value is error


def test_a_request_is_repeated_only_until_the_deadline() -> None:
    with pytest.raises(TimeoutError):
        asyncio.run(polling.get_again(cast("Api", ScriptedApi(TimeoutError())), KEY, time.monotonic() - 1))


def test_watching_survives_an_outage() -> None:
    watched = show.watch_job(scripted(*OUTAGE, job("Succeeded")), job("Running"))
    assert asyncio.run(watched)["status"]["phase"] == "Succeeded"


@pytest.mark.parametrize(("until_rejected", "phase"), [(True, "Rejected"), (False, "Succeeded")])
def test_only_a_new_job_is_watched_until_it_is_rejected(until_rejected: bool, phase: str) -> None:
    cluster = scripted(job("Pending"), job("Rejected"), job("Succeeded"))
    shown = show.watch_job(cluster, job(""), until_rejected=until_rejected)
    assert asyncio.run(shown)["status"]["phase"] == phase


@pytest.mark.parametrize("deletes", [True, False])
def test_delete_says_whether_that_job_was_deleted(monkeypatch: pytest.MonkeyPatch, deletes: bool) -> None:
    """The API server deletes nothing if the job was replaced, or deleted, after it was read."""
    api = ScriptedApi(job("Running"), job("Running"), *OUTAGE, GONE)
    api.deletes = deletes

    async def connected(*_: Any) -> ScriptedApi:
        return api

    monkeypatch.setattr(connect.Api, "connect", connected)
    shown = CliRunner().invoke(cli, ["delete", "my-dog", "--wait"])
    if deletes:
        assert shown.output == 'dreamboothjob.dreambooth.dev "my-dog" deleted from team namespace\n'
    else:
        assert shown.output.startswith("Error: job my-dog was already deleted by another client")
    assert shown.exit_code == (0 if deletes else 1)
