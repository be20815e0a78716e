"""The Python client on a real API server: `kubectl dreambooth` has the same functions, and more tests."""

from __future__ import annotations

import json

import pytest
from devcluster import ControlPlane
from test_plugin_commands import create, set_status

from dreambooth import Client, ClientError, JobExistsError, JobNotFoundError, Phase

SPRITE = "builtin:sprites/dog-pink-blue"


@pytest.fixture
def client(plane: ControlPlane, namespace: str) -> Client:
    return Client("kubernetes", namespace=namespace, kubeconfig=plane.kubeconfig)


def test_a_job_from_creation_to_deletion(plane: ControlPlane, namespace: str, client: Client) -> None:
    job = client.run(images=SPRITE, class_="dog", name="your-dog", settings={"training.steps": 20})
    spec = plane.get("dbj", "your-dog", "-n", namespace)["spec"]
    assert (spec["training"]["steps"], spec["subject"]["images"]) == (20, {"uri": SPRITE})
    create(plane, namespace)
    assert [found.name for found in client.list()] == ["my-dog", "your-dog"]
    with pytest.raises(JobExistsError, match='"your-dog" already exists'):
        client.run(images=SPRITE, class_="dog", name="your-dog")
    job.suspend()
    assert plane.get("dbj", "your-dog", "-n", namespace)["spec"]["runPolicy"]["suspend"] is True
    job.resume()
    assert plane.get("dbj", "your-dog", "-n", namespace)["spec"]["runPolicy"]["suspend"] is False
    set_status(plane, namespace, "your-dog", phase="Succeeded", scores={"dino": "0.742"})
    assert job.wait(30, progress=False).status.phase is Phase.SUCCEEDED
    assert job.scores == {"dino": 0.742}
    assert job.events() == []
    job.delete()
    with pytest.raises(JobNotFoundError):
        client.get("your-dog")


def test_an_invalid_context_and_a_missing_cluster_are_sentences(plane: ControlPlane, client: Client) -> None:
    with pytest.raises(ClientError, match="missing"):
        Client("kubernetes", kubeconfig=plane.kubeconfig, context="missing").list()
    with pytest.raises(JobNotFoundError, match="to list jobs"):
        client.get("missing")


def test_events_are_those_of_the_job(plane: ControlPlane, namespace: str, client: Client) -> None:
    create(plane, namespace)
    event = {
        "apiVersion": "v1",
        "kind": "Event",
        "metadata": {"name": "one", "namespace": namespace},
        "involvedObject": {"kind": "DreamBoothJob", "name": "my-dog", "namespace": namespace},
        "reason": "Started",
        "message": "Attempt 1 started.",
        "type": "Normal",
        "lastTimestamp": "2026-11-29T12:00:00Z",
    }
    plane.kubectl("create", "-f", "-", stdin=json.dumps(event))
    (found,) = client.get("my-dog").events()
    assert (found.reason, found.message) == ("Started", "Attempt 1 started.")
