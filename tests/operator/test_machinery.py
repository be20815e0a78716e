"""Reflector, Lease and events against the real API server, while it misbehaves."""

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
async def mirror(api: Api, namespace: str, page: int = 500) -> AsyncIterator[Reflector[str]]:
    """A running, filled reflector of a namespace's ConfigMaps."""
    changes: list[Key] = []
    reflector = Reflector(api, CONFIG_MAPS, project=value_of, on_change=changes.append, namespace=namespace, page=page)
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


async def there(api: Api, namespace: str) -> dict[Key, str]:
    """What the server has now."""
    answer = await api.request("GET", CONFIG_MAPS.path(namespace))
    return {key_of(obj): value_of(obj) for obj in answer["items"]}


async def test_a_mirror_follows_creation_change_and_deletion(api: Api, namespace: str) -> None:
    for number in range(7):
        await api.create(CONFIG_MAPS, config_map(namespace, f"c{number}", "old"))
    async with mirror(api, namespace, page=3) as reflector:
        assert len([k for k in reflector.cache if k.name.startswith("c")]) == 7, "all pages of the list"
        await api.apply(CONFIG_MAPS, config_map(namespace, "c1", "new"), manager="test")
        await api.delete(CONFIG_MAPS, Key(namespace, "c2"))
        await api.create(CONFIG_MAPS, config_map(namespace, "c9", "x" * 300_000))  # longer than a read buffer
        expected = await there(api, namespace)
        await until("the mirror is equal", lambda: reflector.cache == expected)
        assert reflector.lists == 1


async def test_a_mirror_survives_a_restart_of_the_api_server(plane: ControlPlane, api: Api, namespace: str) -> None:
    async with mirror(api, namespace) as reflector:
        await api.create(CONFIG_MAPS, config_map(namespace, "before", "1"))
        plane.apiserver.kill()
        plane.start_apiserver()  # not in a thread: the server would die with it
        await api.create(CONFIG_MAPS, config_map(namespace, "after", "1"))
        await api.delete(CONFIG_MAPS, Key(namespace, "before"))
        expected = await there(api, namespace)
        await until("the mirror is equal", lambda: reflector.cache == expected)


async def test_a_mirror_lists_anew_when_its_version_has_expired(api: Api, namespace: str) -> None:
    await api.create(CONFIG_MAPS, config_map(namespace, "kept", "1"))
    with pytest.raises(ApiError) as expired:
        async for line in api.lines(CONFIG_MAPS.path(namespace), {"watch": "true", "resourceVersion": "1"}):
            raise ApiError(json.loads(line)["object"]["code"], "", "")
    assert expired.value.is_expired, "the server no longer knows what came after version 1"
    gone: list[Key] = []
    reflector = Reflector(api, CONFIG_MAPS, project=value_of, on_change=gone.append, namespace=namespace)
    ghost = Key(namespace, "ghost")
    reflector.cache[ghost] = "deleted while nobody watched"
    reflector._version = "1"
    task = asyncio.create_task(reflector.run())
    expected = await there(api, namespace)
    await until("the mirror is equal", lambda: reflector.cache == expected)
    assert (reflector.watches, reflector.lists) >= (1, 1)
    assert ghost in gone, "what vanished is told like a deletion"
    task.cancel()


@pytest.mark.parametrize("seed", range(2))
async def test_a_mirror_equals_the_server_after_random_changes(api: Api, namespace: str, seed: int) -> None:
    rng = random.Random(seed)
    async with mirror(api, namespace) as reflector:
        for _ in range(60):
            name = f"c{rng.randrange(6)}"
            if rng.random() < 0.3:
                await api.delete(CONFIG_MAPS, Key(namespace, name))
            else:
                await api.apply(CONFIG_MAPS, config_map(namespace, name, str(rng.random())), manager="test")
        expected = await there(api, namespace)
        await until("the mirror is equal", lambda: reflector.cache == expected)


def lease(api: Api, namespace: str, who: str) -> Lease:
    return Lease(api, Key(namespace, "leader"), who, lease_seconds=2, renew_seconds=1.2, retry_seconds=0.2)


async def test_one_leads_at_a_time_and_the_next_takes_over(api: Api, namespace: str) -> None:
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


async def test_a_dead_leader_is_replaced_after_its_lease_and_not_before(api: Api, namespace: str) -> None:
    led = asyncio.Event()

    async def for_ever() -> None:
        led.set()
        await asyncio.sleep(3600)

    dead = asyncio.create_task(lease(api, namespace, "dead").lead(for_ever))
    await led.wait()
    held = await api.get(LEASES, Key(namespace, "leader"))
    dead.cancel()
    await asyncio.gather(dead, return_exceptions=True)
    released = await api.get(LEASES, Key(namespace, "leader"))
    released["spec"] = held["spec"]  # as if it had died without a word
    await api.request("PUT", LEASES.path(namespace, "leader"), body=released)
    started = asyncio.get_running_loop().time()
    led.clear()
    heir = asyncio.create_task(lease(api, namespace, "heir").lead(for_ever))
    async with asyncio.timeout(20):
        await led.wait()
    assert asyncio.get_running_loop().time() - started >= 2
    heir.cancel()
    await asyncio.gather(heir, return_exceptions=True)


async def test_a_leader_whose_lease_is_taken_stops_its_work(api: Api, namespace: str) -> None:
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


async def test_a_leader_that_cannot_renew_stops_before_its_lease_expires(
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
        plane.start_apiserver()  # not in a thread: the server would die with it
    assert stopped_after[0] < 2


def test_a_lease_refuses_times_that_let_two_lead(api: Api) -> None:
    with pytest.raises(ValueError, match="overlaps with its successor"):
        Lease(api, Key("a", "b"), "c", lease_seconds=10, renew_seconds=15, retry_seconds=2)


async def test_the_same_event_is_counted_not_repeated(plane: ControlPlane, api: Api, namespace: str) -> None:
    about = {"apiVersion": "v1", "kind": "ConfigMap", "namespace": namespace, "name": "told", "uid": "u"}
    recorder = Recorder(api, "test")
    for _ in range(3):
        await recorder.record(about, Event("Warning", "Odd", "It is odd."))
    await recorder.record(about, Event("Normal", "Fine", "m" * 5000))
    events = plane.get("events", "-n", namespace)["items"]
    assert sorted((e["reason"], e["count"]) for e in events) == [("Fine", 1), ("Odd", 3)]


async def test_an_apply_with_a_version_is_a_compare_and_swap(api: Api, namespace: str) -> None:
    made = await api.create(CONFIG_MAPS, config_map(namespace, "c", "1"))
    await api.apply(CONFIG_MAPS, config_map(namespace, "c", "2"), manager="other")
    stale = config_map(namespace, "c", "3")
    stale["metadata"]["resourceVersion"] = made["metadata"]["resourceVersion"]
    with pytest.raises(ApiError) as refusal:
        await api.apply(CONFIG_MAPS, stale, manager="us")
    assert refusal.value.is_conflict
    assert not await api.delete(CONFIG_MAPS, Key(namespace, "c"), uid="another"), "another object of that name"
    assert await api.delete(CONFIG_MAPS, Key(namespace, "c"))
    assert not await api.delete(CONFIG_MAPS, Key(namespace, "c"))
