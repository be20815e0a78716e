"""Isolation of tenants: an unreadable object does not affect others, and is rejected with a message."""

from __future__ import annotations

import asyncio
import copy
import json
import logging
from typing import NoReturn

import pytest
from devcluster import ControlPlane
from fakeray import FakeRay
from operatorprocess import SYSTEM, Operator, until
from test_crd import MINIMAL
from test_jsontext import nested

from dreambooth_operator.app import Options, _run_until_signal
from dreambooth_operator.controller.observed import cache_job, read_job
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Json, Key
from dreambooth_operator.resources import JOBS

LEVELS = 1500


def apply_nested(plane: ControlPlane, namespace: str, name: str) -> None:
    """Create a job of a few kilobytes that the API server accepts and that Python's json cannot parse."""
    job = {**MINIMAL, "metadata": {"name": name}}
    text = json.dumps({**job, "spec": {**MINIMAL["spec"], "training": {"deepspeed": {"config": "HERE"}}}})
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=text.replace('"HERE"', nested(LEVELS)))


def apply_good(plane: ControlPlane, namespace: str, name: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=json.dumps({**MINIMAL, "metadata": {"name": name}}))


def field(plane: ControlPlane, namespace: str, name: str, path: str) -> str:
    """A field of a job, selected by kubectl, because this process cannot parse the whole object."""
    return plane.kubectl("get", "dbj", name, "-n", namespace, "-o", f"jsonpath={{{path}}}")


def reaches(plane: ControlPlane, namespace: str, name: str, *phases: str) -> None:
    until(f"{name} is {phases}", lambda: field(plane, namespace, name, ".status.phase") in phases, 60)


def check_rejection(plane: ControlPlane, namespace: str, name: str) -> None:
    reaches(plane, namespace, name, "Rejected")
    message = field(plane, namespace, name, ".status.conditions[0].message")
    for part in ("spec.training.deepspeed.config", "nested deeper than 8 levels", "use DeepSpeed's own keys"):
        assert part in message


def test_deeply_nested_job_does_not_affect_other_jobs(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    apply_nested(plane, namespace, "deep")  # as an event of a watch
    apply_good(plane, namespace, "shallow")
    reaches(plane, namespace, "shallow", "Starting", "Running")
    check_rejection(plane, namespace, "deep")
    operator.process.kill()
    apply_nested(plane, namespace, "deeper")  # in a list
    operator.start()
    apply_good(plane, namespace, "shallow-2")
    reaches(plane, namespace, "shallow-2", "Starting", "Running")
    check_rejection(plane, namespace, "deeper")
    patch = '{"spec": {"training": {"deepspeed": {"config": null}}}}'
    plane.kubectl("patch", "dbj", "deep", "-n", namespace, "--type=merge", "-p", patch)
    reaches(plane, namespace, "deep", "Starting", "Running")
    plane.kubectl("delete", "dbj", "--all", "-n", namespace)


async def test_unreadable_object_does_not_affect_others(
    api: Api, namespace: str, caplog: pytest.LogCaptureFixture
) -> None:
    notified: list[Key] = []

    def project(obj: Json) -> str:
        return obj["data"]["value"]

    def on_change(key: Key) -> None:
        notified.append(key)
        if key.name == "unwelcome":
            raise RecursionError

    async def put(name: str, data: Json | None) -> None:
        metadata = {"namespace": namespace, "name": name}
        body = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data}
        await api.apply(CONFIG_MAPS, body, manager="test")

    await put("broken", {"other": "x"})
    await put("good", {"value": "1"})
    await put("unwelcome", {"value": "1"})
    mirror = Reflector(api, CONFIG_MAPS, project=project, on_change=on_change, namespace=namespace)
    task = asyncio.create_task(mirror.run())
    try:
        await asyncio.wait_for(mirror.synced.wait(), 20)
        assert Key(namespace, "broken") not in mirror.cache
        assert mirror.cache[Key(namespace, "good")] == "1"
        await put("good", {"other": "x"})
        await put("last", {"value": "2"})
        async with asyncio.timeout(20):
            while Key(namespace, "last") not in mirror.cache:
                await asyncio.sleep(0.05)
        assert Key(namespace, "good") not in mirror.cache, "the cached state is out of date"
        assert Key(namespace, "unwelcome") in mirror.cache
        assert mirror.lists == 1
        assert f"{namespace}/broken cannot be read and is skipped" in caplog.text
        assert f"the change of {namespace}/unwelcome was not handled" in caplog.text
    finally:
        task.cancel()


@pytest.mark.parametrize("election", ["", SYSTEM])
async def test_process_exits_when_a_reflector_stops(
    plane: ControlPlane, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, election: str
) -> None:
    watch = Reflector._watch

    async def fail(self: Reflector[object]) -> NoReturn:
        if self.resource is JOBS:
            raise RecursionError("out of stack")
        await watch(self)
        raise AssertionError

    monkeypatch.setattr(Reflector, "_watch", fail)
    options = Options(
        kubeconfig=str(plane.kubeconfig), namespace=election, host="127.0.0.1", health_port=0, progress_port=0
    )
    assert await asyncio.wait_for(_run_until_signal(options), 60) == 1
    critical = [record for record in caplog.records if record.levelno == logging.CRITICAL]
    assert "the reflector of dreamboothjobs stopped: RecursionError('out of stack')" in caplog.text
    assert len(critical) == 1


def test_cached_job_is_small_whatever_its_user_writes() -> None:
    large = {"key": "x" * 250_000}
    metadata = {"annotations": large, "labels": large, "managedFields": [large]}
    names = {"name": "dog", "namespace": "team", "uid": "u", "resourceVersion": "1"}
    created = {"creationTimestamp": "2026-11-24T06:00:00Z"}
    job = {**MINIMAL, "metadata": {**names, **created, **metadata}}
    job["spec"] = {**MINIMAL["spec"], "training": {"deepspeed": {"config": {"a": "x" * 1_000_000}}}}
    cached = cache_job(copy.deepcopy(job)).raw
    assert len(cached) < 2000
    problems = read_job(json.loads(cached)).problems
    assert "(more than 8192 bytes) cannot be set here" in problems[0]
