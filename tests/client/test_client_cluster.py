"""The client's kubernetes backend, with a scripted API server."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import signal
import sys
import threading
import time
from collections.abc import Callable, Coroutine, Generator, Iterator, Mapping
from pathlib import Path
from typing import Any, cast

import click
import numpy as np
import pytest
from PIL import Image

from dreambooth import Client, ClientError, JobExistsError, JobFailedError, JobNotFoundError, Phase
from dreambooth.cluster import job_objects
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_operator.kubectl_plugin import connect
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Json, Key, Resource

SETTINGS = {"training.steps": 20, "runtimeRef.name": "a"}
SPRITE = "builtin:sprites/dog-pink-blue"


class FakeApi:
    """Objects by plural and name."""

    host, namespace = "https://api", "team"

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], Json] = {}
        self.events: list[Json] = []

    async def __aenter__(self) -> FakeApi:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def get(self, resource: Resource, key: Key) -> Json:
        if (resource.plural, key.name) not in self.objects:
            raise ApiError(404, "NotFound", f'{resource.plural}.{resource.group} "{key.name}" not found')
        return self.objects[resource.plural, key.name]

    async def create(self, resource: Resource, obj: Json) -> Json:
        name = obj["metadata"]["name"]
        if (resource.plural, name) in self.objects:
            raise ApiError(409, "AlreadyExists", f'{resource.plural} "{name}" already exists')
        self.objects[resource.plural, name] = {**obj, "metadata": {**obj["metadata"], "uid": "1"}}
        return self.objects[resource.plural, name]

    async def merge(self, resource: Resource, key: Key, patch: Json) -> Json:
        obj = await self.get(resource, key)
        obj.update({field: {**obj.get(field, {}), **value} for field, value in patch.items()})
        return obj

    async def delete(self, resource: Resource, key: Key, uid: str = "") -> bool:
        del uid
        return self.objects.pop((resource.plural, key.name), None) is not None

    async def request(self, method: str, path: str, *, body: Any = None, **_: object) -> Json:
        plural = path.rpartition("/")[2]
        if plural == "events":
            return {"items": self.events}
        if method == "POST":
            return await self.create(Resource("dreambooth.dev", "v1alpha1", plural, ""), body)
        return {"items": [obj for (kind, _), obj in self.objects.items() if kind == plural]}


@pytest.fixture
def api(monkeypatch: pytest.MonkeyPatch) -> FakeApi:
    api = FakeApi()
    monkeypatch.setattr("dreambooth.waiting.POLL_SECONDS", 0.01)

    async def connected(kubeconfig: str | None, context: str | None) -> FakeApi:
        assert (kubeconfig, context) == (None, "dev")
        return api

    monkeypatch.setattr(connect.Api, "connect", connected)
    return api


@pytest.fixture
def client(api: FakeApi) -> Client:
    return Client("kubernetes", context="dev")


def stored(api: FakeApi, name: str = "my-dog") -> Json:
    return api.objects["dreamboothjobs", name]


def test_a_job_is_created_watched_and_deleted(api: FakeApi, client: Client) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog", settings=SETTINGS)
    assert stored(api)["metadata"] == {"name": "my-dog", "namespace": "team", "uid": "1"}
    assert stored(api)["spec"] == {
        "runtimeRef": {"name": "a"},
        "subject": {"images": {"uri": SPRITE}, "class": "dog"},
        "training": {"steps": 20},
    }
    assert job.status.phase is Phase.PENDING
    with pytest.raises(JobExistsError, match="already exists"):
        client.run(images=SPRITE, class_="dog", name="my-dog")
    assert [found.name for found in client.list()] == ["my-dog"]
    job.suspend()
    assert stored(api)["spec"]["runPolicy"] == {"suspend": True}
    job.resume()
    assert stored(api)["spec"]["runPolicy"] == {"suspend": False}
    with pytest.raises(ClientError, match="has not published a model; its phase is Pending"):
        job.load_pipeline()
    with pytest.raises(ClientError, match="has not published a model yet; its phase is Pending"):
        job.images()
    with pytest.raises(TimeoutError):
        job.wait(0, progress=False)
    stored(api)["status"] = {"phase": "Succeeded", "scores": {"dino": "0.7", "clipI": "?"}}
    stored(api)["status"]["output"] = {"uri": "pvc://models/my-dog"}
    stored(api)["status"]["subjectScores"] = [{"identifier": "sks", "dino": "0.6"}, {"identifier": "zwx", "dino": "?"}]
    assert job.wait(5).scores == {"dino": 0.7}
    assert job.subject_scores == {"sks": {"dino": 0.6}, "zwx": {}}
    with pytest.raises(ClientError, match="is on a volume of the cluster, pvc://models/my-dog; mount it, or set"):
        job.load_pipeline()
    job.delete()
    for call in (job.delete, job.suspend, lambda: job.status, lambda: client.get("my-dog"), job.logs):
        with pytest.raises(JobNotFoundError, match="not found; to list jobs"):
            call()
    job.wait(1, "delete")


def test_what_the_server_says_is_escaped_and_only_a_missing_job_is_one(
    api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")

    async def get(*_: object) -> Json:
        raise ApiError(404, "NotFound", 'namespaces "<b>team" not found')

    monkeypatch.setattr(api, "get", get)
    with pytest.raises(ClientError, match="namespaces") as caught:
        _ = job.status
    assert not isinstance(caught.value, JobNotFoundError)
    assert "&lt;b&gt;team" in job._repr_html_() and "<b>" not in job._repr_html_()


def test_images_are_copied_to_a_folder_of_the_jobs_name_and_shown(
    api: FakeApi, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fetch(_: object, key: Key, out: Path, kubectl: list[str]) -> list[Path]:
        assert (key.name, kubectl) == ("my-dog", ["kubectl", "--context=dev"])
        out.mkdir()
        (out / "comparison.png").write_bytes(b"\x89PNG\r\n\x1a\n")
        return [out / "comparison.png"]

    monkeypatch.setattr("dreambooth.cluster.fetch", fetch)
    monkeypatch.chdir(tmp_path)
    job = client.run(images=SPRITE, class_="dog", name="my-dog")
    assert "<img" not in job._repr_html_()
    assert job.images() == [Path("my-dog/comparison.png")]
    assert job.images("copy") == [Path("copy/comparison.png")]
    assert "<img" in job._repr_html_()


def test_events_are_sorted_and_printable(api: FakeApi, client: Client) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")
    api.events = [
        {"lastTimestamp": "2026-11-29T12:00:05Z", "type": "Warning", "reason": "B", "message": "b\x1b[2J", "count": 3},
        {"eventTime": "2026-11-29T12:00:01.5Z", "reason": "A"},
    ]
    events = job.events()
    assert [(event.type, event.reason, event.message, event.count) for event in events] == [
        ("Normal", "A", "", 1),
        ("Warning", "B", "b", 3),
    ]


def test_a_local_folder_of_photos_is_uploaded(
    api: FakeApi, client: Client, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    for number in range(3):
        Image.fromarray(rng.integers(0, 255, (70, 64, 3), dtype=np.uint8)).save(tmp_path / f"Photo {number}.png")
    spec = {"subject": {"images": {"uri": str(tmp_path)}, "class": "dog", "captions": {"Photo 1.png": "a sks dog"}}}
    client.run(spec, name="my-dog")
    photos = api.objects["configmaps", "my-dog-photos"]
    subject = stored(api)["spec"]["subject"]
    assert subject["images"] == {"configMap": {"name": "my-dog-photos"}}
    assert set(subject["captions"]) < set(photos["binaryData"])
    assert len(photos["binaryData"]) == 3
    assert all(base64.b64decode(content)[:2] in (b"\xff\xd8", b"\x89P") for content in photos["binaryData"].values())
    assert photos["metadata"]["ownerReferences"][0]["name"] == "my-dog"
    with pytest.raises(JobExistsError, match=r"ConfigMap my-dog-photos already exists; .* use get"):
        client.run(spec, name="my-dog")
    del api.objects["dreamboothjobs", "my-dog"]
    with pytest.raises(ClientError, match="if no job uses it, run kubectl delete configmap my-dog-photos") as caught:
        client.run(spec, name="my-dog")
    assert not isinstance(caught.value, JobExistsError)
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ClientError, match=r"needs the package PIL; run pip install 'dreambooth-operator\[plugin\]'"):
        client.run(spec, name="your-dog")


@pytest.mark.parametrize(
    ("given", "captioned"), [({}, True), ({"instancePrompt": "a sks dog"}, False)], ids=["kohya folder", "prompt"]
)
def test_photos_are_shrunk_to_the_resolution_and_have_the_captions_of_the_job(
    tmp_path: Path, given: dict[str, str], captioned: bool
) -> None:
    (folder := tmp_path / "10_sks dog").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(0, 255, (128, 160, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number}.png")
    subject = {"class": "dog", "images": {"uri": str(tmp_path)}, **given}
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": "my-dog"},
            "spec": {"subject": subject, "training": {"resolution": 64}},
        }
    )
    files = {name: base64.b64decode(content) for name, content in job_objects(job)[0]["binaryData"].items()}
    sizes = [Image.open(io.BytesIO(content)).size for name, content in files.items() if not name.endswith(".txt")]
    assert sizes == [(80, 64)] * 3
    assert any(name.endswith(".txt") for name in files) == captioned


@pytest.mark.parametrize(
    ("status", "reason", "message"),
    [
        (
            {
                "phase": "Rejected",
                "message": "no",
                "conditions": [
                    {
                        "type": "Accepted",
                        "status": "False",
                        "reason": "RuntimeNotFound",
                        "message": "there is no runtime",
                        "lastTransitionTime": "2026-11-29T12:00:05Z",
                    }
                ],
            },
            "RuntimeNotFound",
            "job my-dog failed: there is no runtime",
        ),
        ({"phase": "Failed", "message": "lost\x1b[2J"}, "Failed", "job my-dog failed: lost"),
    ],
)
def test_wait_raises_why_a_job_cannot_go_on(
    api: FakeApi, client: Client, status: Json, reason: str, message: str
) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")
    stored(api)["status"] = status
    with pytest.raises(JobFailedError) as caught:
        job.wait(5, progress=False)
    assert (caught.value.reason, str(caught.value)) == (reason, message)
    assert job.wait(5, status["phase"], progress=False) is job


def test_an_outage_during_wait_is_survived(api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")
    outages = [ApiError(503, "ServiceUnavailable", "etcd"), ConnectionError("refused")]
    answers: list[Any] = [{"phase": "Running"}, *outages, {"phase": "Running"}, {"phase": "Succeeded"}]

    async def get(*_: object) -> Json:
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return {**stored(api), "status": answer}

    monkeypatch.setattr(api, "get", get)
    job.wait(20, progress=False)
    assert not answers
    for given in ([outages[0]], [{"phase": "Running"}, *outages * 100]):
        answers[:] = given
        with pytest.raises(ClientError, match=r"etcd|refused|respond"):
            job.wait(0.1, progress=False)
    answers[:] = [{"phase": "Running"}, ApiError(403, "Forbidden", "your rights were taken away")]
    with pytest.raises(ClientError, match="your rights were taken away"):
        job.wait(progress=False)


def test_requests_work_where_an_event_loop_runs(api: FakeApi, client: Client) -> None:
    async def cell() -> str:
        return client.run(images=SPRITE, class_="dog", name="my-dog").status.phase

    assert asyncio.run(cell()) == "Pending"


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Python's own handler of SIGINT, which processes in the background do not have."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("interruptible")
def test_an_interrupt_ends_a_request(api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    cleaned, main = threading.Event(), threading.get_ident()

    async def get(*_: object) -> Json:
        threading.Timer(0.2, signal.pthread_kill, [main, signal.SIGINT]).start()
        try:
            await asyncio.sleep(10)
        finally:
            cleaned.set()
        raise AssertionError("not interrupted")

    monkeypatch.setattr(api, "get", get)
    start = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        client.get("my-dog")
    assert cleaned.is_set() and time.monotonic() - start < 8


def test_the_log_is_streamed(api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")

    async def find(*_: object, **options: object) -> list[str] | str:
        assert options["follow"]
        return ["bash", "-c", command]

    monkeypatch.setattr("dreambooth.cluster.find_log", find)
    command = r"printf 'one\ntwo\033[2J\n'; exit 137"
    assert list(job.logs(follow=True)) == ["one", "two"], "its pod ended"
    command = "echo one; exec sleep 60"
    lines, start = job.logs(follow=True), time.monotonic()
    assert next(lines) == "one"
    cast("Generator[str]", lines).close()
    assert time.monotonic() - start < 30, "kubectl is ended with the iterator"


def test_a_log_that_cannot_be_read_is_an_error(api: FakeApi, client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    job = client.run(images=SPRITE, class_="dog", name="my-dog")

    async def find(*_: object, **__: object) -> list[str] | str:
        return ["bash", "-c", command]

    monkeypatch.setattr("dreambooth.cluster.find_log", find)
    command = "echo one; exit 1"
    with pytest.raises(ClientError, match="kubectl exited with code 1"):
        list(job.logs())
    command = "exit 1"
    with pytest.raises(ClientError, match="kubectl exited with code 1"):
        list(job.logs(follow=True))


def test_errors_of_the_connection_are_sentences(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: Mapping[str, str], body: Callable[..., Coroutine[Any, Any, Any]]) -> None:
        del body
        raise click.ClickException("the API server does not respond")

    monkeypatch.setattr("dreambooth.cluster.run_selected", fail)
    with pytest.raises(ClientError, match=r"^the API server does not respond$"):
        Client("kubernetes").list()


def test_a_client_stays_on_its_cluster(api: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    contexts = [{"name": name, "context": {"namespace": f"in-{name}"}} for name in ("test", "production")]
    file = tmp_path / "config"
    file.write_text(json.dumps({"contexts": contexts, "current-context": "test"}))
    used: list[object] = []

    async def connected(kubeconfig: str | None, context: str | None) -> FakeApi:
        used.append((kubeconfig, context))
        return api

    monkeypatch.setattr(connect.Api, "connect", connected)
    monkeypatch.setenv("HOME", str(tmp_path))
    client = Client("kubernetes", kubeconfig="~/config")
    file.write_text(json.dumps({"contexts": contexts, "current-context": "production"}))
    client.run(images=SPRITE, class_="dog", name="my-dog")
    assert used == [(str(file), "test")]
    assert stored(api)["metadata"]["namespace"] == "in-test"
    mine = Client("kubernetes", namespace="mine", context="test", kubeconfig=file)
    mine.run(images=SPRITE, class_="dog", name="your-dog")
    assert used[-1] == (str(file), "test")
    assert stored(api, "your-dog")["metadata"]["namespace"] == "mine"


def test_the_namespace_is_checked() -> None:
    with pytest.raises(ClientError, match=r"'a/b' is not a valid name"):
        Client("kubernetes", namespace="a/b")
    with pytest.raises(ClientError, match="backend 'slurm' is not known; use 'local' or 'kubernetes'"):
        Client("slurm")  # pyright: ignore[reportArgumentType]
