"""Parsing of selected fields: readers get all fields that they read, and unexpected objects are parsed completely."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from test_jsontext import nested

from dreambooth_operator.controller.observed import (
    CHILD_FIELDS,
    RAY_JOB_FIELDS,
    read_erase_job,
    read_ray_cluster,
    read_ray_job,
)
from dreambooth_operator.controller.observed_pods import POD_FIELDS, read_pod
from dreambooth_operator.machinery.jsontext import TOO_DEEP, parse_json
from dreambooth_operator.machinery.partial import Fields, PartialParser
from dreambooth_operator.machinery.resources import Json, key_of

METADATA: Json = {
    "name": "dbj-dog-1",
    "namespace": "team",
    "uid": "r1",
    "resourceVersion": "7",
    "generation": 3,
    "creationTimestamp": "2026-11-24T06:00:00Z",
    "deletionTimestamp": "2026-11-24T07:00:00Z",
    "labels": {
        "dreambooth.dev/job": "dog",
        "dreambooth.dev/attempt": "1",
        "ray.io/node-type": "head",
        "ray.io/originated-from-cr-name": "dbj-dog-1",
    },
    "annotations": {"dreambooth.dev/job-sha256": "00"},
    "ownerReferences": [{"uid": "u1", "name": "dog"}],
    "managedFields": [{"manager": "x", "fieldsV1": {"f:spec": {}}}],
}


def condition(kind: str, status: str, **fields: str) -> Json:
    return {"type": kind, "status": status, **fields}


def container(name: str, **state: Json) -> Json:
    return {"name": name, "imageID": f"x@sha256:{'0' * 64}", **state}


def pod(**status: object) -> Json:
    containers = [{"name": "ray-head", "image": "trainer:1", "resources": {"limits": {"memory": "4Gi"}}, "env": [1]}]
    return {"metadata": METADATA, "spec": {"nodeName": "n1", "containers": containers, "volumes": []}, "status": status}


KILLED = container("ray-head", lastState={"terminated": {"reason": "OOMKilled"}})
PULLING = container("ray-head", state={"waiting": {"reason": "ImagePullBackOff", "message": "m"}})
Reader = Callable[[Json], object]
OBJECTS: dict[str, tuple[Reader, Fields, Json]] = {
    "RayJob": (
        read_ray_job,
        RAY_JOB_FIELDS,
        {
            "metadata": METADATA,
            "spec": {"suspend": True, "rayClusterSpec": {"rayVersion": "2.60.0"}},
            "status": {
                "jobDeploymentStatus": "Failed", "jobStatus": "FAILED", "reason": "AppFailed", "message": "m",
                "rayClusterName": "c",
            },
        },
    ),
    "RayCluster": (
        read_ray_cluster,
        CHILD_FIELDS,
        {
            "metadata": METADATA,
            "spec": {"rayVersion": "2.60.0"},
            "status": {
                "head": {"podName": "h"}, "readyWorkerReplicas": 1, "desiredWorkerReplicas": 2,
                "conditions": [
                    condition("HeadPodReady", "False", reason="HeadPodNotFound", message="m"),
                    condition("RayClusterProvisioned", "True"),
                ],
            },
        },
    ),
    "batch Job": (
        read_erase_job,
        CHILD_FIELDS,
        {"metadata": METADATA, "spec": {}, "status": {"conditions": [condition("Failed", "True", message="m")]}},
    ),
    "killed pod": (
        read_pod,
        POD_FIELDS,
        pod(containerStatuses=[KILLED], conditions=[condition("DisruptionTarget", "True", reason="Evicted")]),
    ),
    "waiting pod": (read_pod, POD_FIELDS, pod(initContainerStatuses=[PULLING])),
    "unscheduled pod": (
        read_pod, POD_FIELDS, pod(conditions=[condition("PodScheduled", "False", reason="Unschedulable", message="m")]),
    ),
    "failed pod": (read_pod, POD_FIELDS, pod(phase="Failed", reason="Evicted", message="m")),
}  # fmt: skip


class Guarded(dict[str, Any]):
    """An object of which only selected fields may be read."""

    def __init__(self, obj: Json, fields: Fields) -> None:
        super().__init__({name: guarded(value, fields.get(name)) for name, value in obj.items()})
        self.fields = fields

    def get(self, name: str, default: Any = None) -> Any:
        assert name in self.fields, f"field {name} is read and not selected"
        return super().get(name, default)

    def __getitem__(self, name: str) -> Any:
        return self.get(name)

    def __contains__(self, name: object) -> bool:
        assert name in self.fields, f"field {name} is read and not selected"
        return super().__contains__(name)


def guarded(value: Any, fields: Fields | list[Fields] | None) -> Any:
    if isinstance(fields, list):
        return [Guarded(item, fields[0]) for item in value]
    return value if fields is None else Guarded(value, fields)


@pytest.mark.parametrize("case", OBJECTS)
async def test_readers_read_only_selected_fields(case: str) -> None:
    read, fields, obj = OBJECTS[case]
    assert read(Guarded(obj, fields)) == read(obj)


@pytest.mark.parametrize("case", OBJECTS)
async def test_result_is_the_same_as_with_all_fields(case: str) -> None:
    read, fields, obj = OBJECTS[case]
    parser = PartialParser(fields)
    page = {"kind": "List", "metadata": {"resourceVersion": "9", "continue": "c", "remainingItemCount": 1}}
    parsed = await parse_json(json.dumps({**page, "items": [obj, obj]}).encode(), parser.page)
    assert [read(item) for item in parsed["items"]] == [read(obj), read(obj)]
    assert parsed["metadata"] == {"resourceVersion": "9", "continue": "c"}
    event = await parse_json(json.dumps({"type": "ADDED", "object": obj}).encode(), parser.event)
    assert (event["type"], read(event["object"])) == ("ADDED", read(obj))
    assert "managedFields" not in event["object"]["metadata"]


async def test_error_and_bookmark_events_are_read() -> None:
    parser = PartialParser(RAY_JOB_FIELDS)
    error = {"kind": "Status", "status": "Failure", "metadata": {}, "code": 410, "reason": "Expired", "message": "m"}
    event = await parse_json(json.dumps({"type": "ERROR", "object": error}).encode(), parser.event)
    assert event["object"] == {name: error[name] for name in ("status", "metadata", "code", "reason", "message")}
    bookmark = {"kind": "RayJob", "metadata": {"resourceVersion": "9"}, "spec": None}
    event = await parse_json(json.dumps({"type": "BOOKMARK", "object": bookmark}).encode(), parser.event)
    assert event["object"]["metadata"]["resourceVersion"] == "9"


@pytest.mark.parametrize(
    "change", [{"spec": []}, {"spec": "x"}, {"metadata": 5}, {"spec": None}, {"spec": {"containers": {"a": 1}}}]
)
async def test_object_of_another_structure_affects_only_itself(change: Json) -> None:
    read, fields, obj = OBJECTS["waiting pod"]
    text = json.dumps({"metadata": {"resourceVersion": "9"}, "items": [obj, {**obj, **change}]}).encode()
    good, odd = (await parse_json(text, PartialParser(fields).page))["items"]
    assert read(good) == read(obj)
    for name, value in change.items():
        assert odd[name] == value


@pytest.mark.parametrize("field", ["status", "spec"])
async def test_deeply_nested_object_affects_only_itself(field: str) -> None:
    read, fields, obj = OBJECTS["waiting pod"]
    deep = json.dumps({**obj, field: "HERE"}).replace('"HERE"', nested(1500))
    text = f'{{"metadata": {{"resourceVersion": "9"}}, "items": [{json.dumps(obj)}, {deep}]}}'.encode()
    parsed = await parse_json(text, PartialParser(fields).page)
    assert read(parsed["items"][0]) == read(obj)
    assert TOO_DEEP in json.dumps(parsed["items"][1])


async def test_text_that_is_not_json_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"."):
        await parse_json(b'{"items": [', PartialParser(POD_FIELDS).page)


async def test_cached_objects_share_their_names() -> None:
    """Each name is in several objects. Of ten thousand jobs, the copies would take 8 MiB."""

    async def observed(case: str, name: str) -> Any:
        read, fields, obj = OBJECTS[case]
        text = json.dumps({"type": "ADDED", "object": obj}).encode()
        event = await parse_json(text, PartialParser(fields).event)
        key = key_of(event["object"])
        return getattr(key if name == "namespace" else read(event["object"]), name)

    for cases, names in (
        (("RayJob", "RayCluster"), ("owner", "name", "namespace")),
        (("waiting pod", "failed pod"), ("owner", "attempt", "node", "image")),
    ):
        for name in names:
            first, second = [await observed(case, name) for case in cases]
            assert first is second, name
