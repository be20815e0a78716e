"""An object that somebody else created under the name of a child is never adopted."""

from __future__ import annotations

import copy
import dataclasses
import hashlib
from datetime import timedelta
from typing import Any, cast

import pytest
from scenarios import conditions, running
from simulation import RUNTIME, SETTINGS, START, World, attempt_objects, make_job

from dreambooth_api.environment import JOB_FILE_NAME, JOB_SHA256
from dreambooth_operator.controller.actions import Create, Decision
from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.ownership import name_conflict
from dreambooth_operator.controller.reconciler import Reconciler, _ChildRejectedError, _Known
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, SERVICE_ACCOUNTS, Json, Key, Resource
from dreambooth_operator.resources import RAY_JOBS

JOB = make_job(erase=True)


def resolved() -> ResolvedJob:
    found = resolve(JOB, RUNTIME, [])
    assert isinstance(found, ResolvedJob)
    return found


def child(resource: Resource) -> Json:
    return dict(attempt_objects(JOB, 1, resolved()))[resource]


def foreign(obj: Json) -> None:
    obj["metadata"]["ownerReferences"] = []


def of_another_job(obj: Json) -> None:
    obj["metadata"]["ownerReferences"][0]["uid"] = "u2"


def open_to_all(obj: Json) -> None:
    obj["spec"]["ingress"] = [{}]


def with_token(obj: Json) -> None:
    obj["automountServiceAccountToken"] = True


SQUATTERS = {
    "a foreign service account": (SERVICE_ACCOUNTS, foreign),
    "a service account of another job": (SERVICE_ACCOUNTS, of_another_job),
    "a service account with other content": (SERVICE_ACCOUNTS, with_token),
    "a RayJob of another job": (RAY_JOBS, of_another_job),
    "a foreign network policy": (NETWORK_POLICIES, foreign),
    "a network policy with other content": (NETWORK_POLICIES, open_to_all),
}


class Existing:
    """An API in which every name is taken by `obj`."""

    def __init__(self, obj: Json) -> None:
        self.obj = obj

    async def create(self, resource: Resource, obj: Json) -> Json:
        raise ApiError(409, "AlreadyExists", "exists")

    async def get(self, resource: Resource, key: Key) -> Json:
        return self.obj


async def create(resource: Resource, wanted: Json, existing: Json) -> None:
    """Create a child whose name is taken."""
    api: Any = Existing(existing)
    reconciler = Reconciler(cast("Api", api), SETTINGS, now=lambda: START, progress_ca=str)
    await reconciler._carry_out(JOB, Decision((Create(resource, wanted),)), _Known(fresh=True))


@pytest.mark.parametrize("case", SQUATTERS)
async def test_object_of_somebody_else_is_not_adopted(case: str) -> None:
    resource, change = SQUATTERS[case]
    existing = copy.deepcopy(child(resource))
    change(existing)
    with pytest.raises(_ChildRejectedError) as caught:
        await create(resource, child(resource), existing)
    assert caught.value.failure.reason == "NameTaken"
    assert "delete it, or create the job under another name" in caught.value.failure.message


@pytest.mark.parametrize("resource", [SERVICE_ACCOUNTS, NETWORK_POLICIES, RAY_JOBS])
async def test_own_child_is_found_again_after_an_interruption(resource: Resource) -> None:
    existing = copy.deepcopy(child(resource))
    existing["metadata"] |= {"uid": "x", "resourceVersion": "5", "creationTimestamp": "2026-11-24T06:00:00Z"}
    await create(resource, child(resource), existing)
    assert name_conflict(resource, child(resource), existing) is None


@pytest.mark.parametrize("resource", [SERVICE_ACCOUNTS, NETWORK_POLICIES])
async def test_api_server_does_not_change_what_is_compared(api: Api, namespace: str, resource: Resource) -> None:
    wanted = copy.deepcopy(child(resource))
    wanted["metadata"]["namespace"] = namespace
    # A later read may find nothing: the garbage collector deletes an object whose owner does not exist.
    assert name_conflict(resource, wanted, await api.create(resource, wanted)) is None


def test_job_file_is_checked_by_its_digest() -> None:
    for children in (attempt_objects(JOB, 1, resolved()), erase_children(JOB, resolved())):
        objects = {obj["kind"]: obj for _, obj in children}
        text: str = objects["ConfigMap"]["data"][JOB_FILE_NAME]
        last = str(children[-1][1])
        assert JOB_SHA256 in last
        assert hashlib.sha256(text.encode()).hexdigest() in last


def test_batch_job_of_somebody_else_does_not_count_as_deletion_of_the_data() -> None:
    world = World(make_job(erase=True))
    world.reconcile()
    world.reconcile()
    running(world)
    world.delete()
    world.reconcile()
    world.collect()
    world.reconcile()
    assert world.erase
    world.erase = dataclasses.replace(world.erase, owner_uid="u2", succeeded=True)
    world.advance(timedelta(minutes=5).total_seconds())
    world.reconcile()
    assert world.job, "the finalizer is kept"
    assert conditions(world)["Erased"][:2] == ("False", "NameTaken")
