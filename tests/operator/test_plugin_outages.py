"""kubectl dreambooth create while the API server fails. The API is scripted."""

from __future__ import annotations

import asyncio
from typing import Any, cast

import aiohttp
import pytest

from dreambooth_operator.kubectl_plugin.connect import Cluster
from dreambooth_operator.kubectl_plugin.objects import job_object, photos_object
from dreambooth_operator.kubectl_plugin.send import send
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key

KEY = Key("", "my-dog")
OBJECTS = (
    photos_object(KEY, {"a.jpg": b"x"}),
    job_object(KEY, {"configMap": {"name": "my-dog-photos"}}, "dog", "", ()),
)
INVALID = ApiError(422, "Invalid", "spec.x: no")
UNAVAILABLE = ApiError(503, "ServiceUnavailable", "etcd is down")
DISCONNECTED = aiohttp.ServerDisconnectedError("dropped")
DELETE = "kubectl delete configmap my-dog-photos -n team"


class FailingApi:
    """Stores objects; each verb raises its error, if it has one."""

    def __init__(self, **errors: BaseException) -> None:
        self.errors, self.kinds = errors, list[str]()

    def _do(self, verb: str) -> None:
        if verb in self.errors:
            raise self.errors[verb]

    async def create(self, _resource: object, obj: Json) -> Json:
        self._do("create")
        self.kinds.append(obj["kind"])
        return {**obj, "metadata": {**obj["metadata"], "uid": "1"}}

    async def request(self, *_: object, body: Json, **__: object) -> Json:
        self._do("post")
        return await self.create(None, body)

    async def merge(self, _resource: object, _key: Key, patch: Json) -> Json:
        self._do("merge")
        return {**OBJECTS[0], **patch}

    async def delete(self, *_: object, **__: object) -> bool:
        self._do("delete")
        self.kinds.remove("ConfigMap")
        return True


def sent(api: FailingApi) -> list[Json]:
    return asyncio.run(send(Cluster(cast("Api", api), "team", ()), OBJECTS))


@pytest.mark.parametrize("error", [UNAVAILABLE, DISCONNECTED, TimeoutError(), asyncio.CancelledError()], ids=repr)
def test_photos_of_a_job_that_may_exist_are_kept(error: BaseException, capsys: pytest.CaptureFixture[str]) -> None:
    api = FailingApi(post=error)
    with pytest.raises(type(error)):
        sent(api)
    assert api.kinds == ["ConfigMap"]
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: the ConfigMap my-dog-photos was kept; ")
    assert "run kubectl dreambooth status my-dog -n team" in line
    assert line.endswith(DELETE)


@pytest.mark.parametrize("failure", [UNAVAILABLE, DISCONNECTED], ids=repr)
def test_the_error_of_the_job_is_reported_if_its_photos_remain(
    failure: Exception, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(ApiError) as caught:
        sent(FailingApi(post=INVALID, delete=failure))
    assert caught.value is INVALID
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("Warning: the ConfigMap my-dog-photos remains (")
    assert line.endswith(DELETE)


def test_photos_of_a_rejected_job_are_deleted(capsys: pytest.CaptureFixture[str]) -> None:
    api = FailingApi(post=INVALID)
    with pytest.raises(ApiError):
        sent(api)
    assert (api.kinds, capsys.readouterr().err) == ([], "")


@pytest.mark.parametrize("failure", [UNAVAILABLE, DISCONNECTED, TimeoutError()], ids=repr)
def test_a_missing_owner_is_a_warning(failure: Exception, capsys: pytest.CaptureFixture[str]) -> None:
    photos, job = sent(FailingApi(merge=failure))
    assert (photos["kind"], job["kind"]) == ("ConfigMap", "DreamBoothJob")
    reason: Any = {UNAVAILABLE: "etcd is down", DISCONNECTED: "dropped"}.get(failure, "TimeoutError")
    assert capsys.readouterr().err == (
        f"Warning: the ConfigMap is not deleted with the job ({reason}); delete it yourself\n"
    )
