"""Reflector, Lease and events against the real API server, including its failures."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
from collections.abc import AsyncIterator, Callable

import pytest
from devcluster import ControlPlane

from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.events import Event, Recorder
from dreambooth_operator.machinery.lease import Lease, LeaseLostError
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import CONFIG_MAPS, LEASES, Json, Key, key_of


def config_map(namespace: str, name: str, value: str) -> Json:
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": {"value": value}}


def value_of(obj: Json) -> str:
    return (obj.get("data") or {}).get("value", "")


@contextlib.asynccontextmanager
async def running_reflector(api: Api, namespace: str) -> AsyncIterator[Reflector[str]]:
    """A running, synced reflector of a namespace's ConfigMaps. Lists that are not streamed have two pages or more."""
    changes: list[Key] = []
    reflector = Reflector(api, CONFIG_MAPS, project=value_of, on_change=changes.append, namespace=namespace, page=3)
    task = asyncio.create_task(reflector.run())
    try:
        async with asyncio.timeout(20):
            await reflector.synced.wait()
        yield reflector
    finally:
        task.cancel()


async def until(what: str, holds: Callable[[], bool], seconds: float = 30) -> None:
    try:
        async with asyncio.timeout(seconds):
            while not holds():
                await asyncio.sleep(0.05)
    except TimeoutError:
        pytest.fail(f"{what}: not within {seconds} s")


async def on_server(api: Api, namespace: str) -> dict[Key, str]:
    """The ConfigMaps on the server."""
    answer = await api.request("GET", CONFIG_MAPS.path(namespace))
    return {key_of(obj): value_of(obj) for obj in answer["items"]}


async def test_reflector_observes_creation_change_and_deletion(api: Api, namespace: str) -> None:
    for number in range(7):
        await api.create(CONFIG_MAPS, config_map(namespace, f"c{number}", "old"))
    async with running_reflector(api, namespace) as reflector:
        assert len([k for k in reflector.cache if k.name.startswith("c")]) == 7, "the whole list"
        await api.apply(CONFIG_MAPS, config_map(namespace, "c1", "new"), manager="test")
        await api.delete(CONFIG_MAPS, Key(namespace, "c2"))
        await api.create(CONFIG_MAPS, config_map(namespace, "c9", "x" * 300_000))  # larger than a read buffer
        expected = await on_server(api, namespace)
        await until("the cache equals the server", lambda: reflector.cache == expected)
        assert reflector.lists == 1


async def test_reflector_lists_in_pages_if_the_server_streams_no_lists(
    plane: ControlPlane, api: Api, namespace: str
) -> None:
    for number in range(7):
        await api.create(CONFIG_MAPS, config_map(namespace, f"c{number}", "old"))
    plane.apiserver.kill()
    plane.apiserver.command.append("--feature-gates=WatchList=false")
    try:
        plane.start_apiserver()
        async with running_reflector(api, namespace) as reflector:
            assert reflector.cache == await on_server(api, namespace), "all pages of the list"
            await api.delete(CONFIG_MAPS, Key(namespace, "c2"))
            expected = await on_server(api, namespace)
            await until("the cache equals the server", lambda: reflector.cache == expected)
            assert reflector.lists == 2, "refused once, then in pages"
    finally:
        plane.apiserver.kill()
        plane.apiserver.command.remove("--feature-gates=WatchList=false")
        plane.start_apiserver()


async def test_reflector_survives_a_restart_of_the_api_server(plane: ControlPlane, api: Api, namespace: str) -> None:
    async with running_reflector(api, namespace) as reflector:
        await api.create(CONFIG_MAPS, config_map(namespace, "before", "1"))
        plane.apiserver.kill()
        plane.start_apiserver()  # not in a thread, whose end would end the server
        await api.create(CONFIG_MAPS, config_map(namespace, "after", "1"))
        await api.delete(CONFIG_MAPS, Key(namespace, "before"))
        expected = await on_server(api, namespace)
        await until("the cache equals the server", lambda: reflector.cache == expected)


async def test_reflector_lists_again_when_its_version_has_expired(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS, config_map(namespace, "kept", "1"))
    with pytest.raises(ApiError) as expired:
        async for line in api.lines(CONFIG_MAPS.path(namespace), {"watch": "true", "resourceVersion": "1"}):
            raise ApiError(json.loads(line)["object"]["code"], "", "")
    assert expired.value.is_expired, "the server has compacted version 1"
    gone: list[Key] = []
    reflector = Reflector(api, CONFIG_MAPS, project=value_of, on_change=gone.append, namespace=namespace)
    ghost = Key(namespace, "ghost")
    reflector.cache[ghost] = "deleted while no watch was running"
    reflector._version = "1"
    task = asyncio.create_task(reflector.run())
    expected = await on_server(api, namespace)
    await until("the cache equals the server", lambda: reflector.cache == expected)
    assert (reflector.watches, reflector.lists) >= (1, 1)
    assert ghost in gone, "an object that has disappeared counts as deleted"
    task.cancel()


@pytest.mark.parametrize("seed", range(2))
async def test_cache_equals_the_server_after_random_changes(api: Api, namespace: str, seed: int) -> None:
    rng = random.Random(seed)
    async with running_reflector(api, namespace) as reflector:
        for _ in range(60):
            name = f"c{rng.randrange(6)}"
            if rng.random() < 0.3:
                await api.delete(CONFIG_MAPS, Key(namespace, name))
            else:
                await api.apply(CONFIG_MAPS, config_map(namespace, name, str(rng.random())), manager="test")
        expected = await on_server(api, namespace)
        await until("the cache equals the server", lambda: reflector.cache == expected)


def lease(api: Api, namespace: str, who: str) -> Lease:
    return Lease(api, Key(namespace, "leader"), who, lease_seconds=2, renew_seconds=1.2, retry_seconds=0.2)


async def test_one_process_leads_at_a_time_and_hands_over(api: Api, namespace: str) -> None:
    leading: list[str] = []
    history: list[str] = []

    async def lead(who: str) -> None:
        async def body() -> None:
            leading.append(who)
            history.append(who)
            assert leading == [who]
            try:
                await asyncio.sleep(0.5)
            finally:
                leading.remove(who)

        await lease(api, namespace, who).lead(body)

    async with asyncio.timeout(30):
        await asyncio.gather(*(lead(who) for who in "abc"))
    assert sorted(history) == ["a", "b", "c"], "handed over without waiting for the lease to expire"


async def test_dead_leader_is_replaced_only_after_its_lease_has_expired(api: Api, namespace: str) -> None:
    led = asyncio.Event()

    async def forever() -> None:
        led.set()
        await asyncio.sleep(3600)

    dead = asyncio.create_task(lease(api, namespace, "dead").lead(forever))
    await led.wait()
    held = await api.get(LEASES, Key(namespace, "leader"))
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    released = await api.get(LEASES, Key(namespace, "leader"))
    released["spec"] = held["spec"]  # as if it had crashed
    await api.request("PUT", LEASES.path(namespace, "leader"), body=released)
    started = asyncio.get_running_loop().time()
    led.clear()
    heir = asyncio.create_task(lease(api, namespace, "heir").lead(forever))
    async with asyncio.timeout(20):
        await led.wait()
    assert asyncio.get_running_loop().time() - started >= 2
    heir.cancel()
    await asyncio.gather(heir, return_exceptions=True)


async def test_leader_stops_when_its_lease_is_taken(api: Api, namespace: str) -> None:
    stopped = asyncio.Event()

    async def body() -> None:
        taken = await api.get(LEASES, Key(namespace, "leader"))
        taken["spec"]["holderIdentity"] = "thief"
        await api.request("PUT", LEASES.path(namespace, "leader"), body=taken)
        try:
            await asyncio.sleep(3600)
        finally:
            stopped.set()

    with pytest.raises(LeaseLostError, match="was taken from us"):
        await lease(api, namespace, "us").lead(body)
    assert stopped.is_set()


async def test_leader_that_cannot_renew_stops_before_its_lease_expires(
    plane: ControlPlane, api: Api, namespace: str
) -> None:
    loop = asyncio.get_running_loop()
    stopped_after: list[float] = []

    async def body() -> None:
        plane.apiserver.kill()
        started = loop.time()
        try:
            await asyncio.sleep(3600)
        finally:
            stopped_after.append(loop.time() - started)

    try:
        with pytest.raises(LeaseLostError, match="not renewed for"):
            await lease(api, namespace, "cut off").lead(body)
    finally:
        plane.start_apiserver()  # not in a thread, whose end would end the server
    assert stopped_after[0] < 2


def test_lease_rejects_durations_that_allow_two_leaders(api: Api) -> None:
    with pytest.raises(ValueError, match="overlaps with its successor"):
        Lease(api, Key("a", "b"), "c", lease_seconds=10, renew_seconds=15, retry_seconds=2)


async def test_repeated_event_increments_its_count(plane: ControlPlane, api: Api, namespace: str) -> None:
    about = {"apiVersion": "v1", "kind": "ConfigMap", "namespace": namespace, "name": "about", "uid": "u"}
    recorder = Recorder(api, "test")
    for _ in range(3):
        recorder.record(about, Event("Warning", "Odd", "It is odd."))
        await recorder.flush()
    recorder.record(about, Event("Normal", "Fine", "m" * 5000))
    await recorder.flush()
    events = plane.get("events", "-n", namespace)["items"]
    assert sorted((e["reason"], e["count"]) for e in events) == [("Fine", 1), ("Odd", 3)]


async def test_apply_with_a_resource_version_is_a_compare_and_swap(api: Api, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, config_map(namespace, "c", "1"))
    await api.apply(CONFIG_MAPS, config_map(namespace, "c", "2"), manager="other")
    stale = config_map(namespace, "c", "3")
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    with pytest.raises(ApiError) as conflict:
        await api.apply(CONFIG_MAPS, stale, manager="us")
    assert conflict.value.is_conflict
    assert not await api.delete(CONFIG_MAPS, Key(namespace, "c"), uid="another"), "another object of that name"
    assert await api.delete(CONFIG_MAPS, Key(namespace, "c"))
    assert not await api.delete(CONFIG_MAPS, Key(namespace, "c"))
