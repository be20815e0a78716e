"""Children go with what they belong to: a ConfigMap with its RayJob, those of a finished job after an hour."""

from __future__ import annotations

import copy
import dataclasses
from typing import Any, cast

import pytest
from scenarios import fail, running, suspend
from simulation import RUNTIME, SETTINGS, START, World, attempt_objects, make_job

from dreambooth_api.status import Failure, Phase
from dreambooth_operator.controller.actions import Create, Decision, Delete, WriteStatus
from dreambooth_operator.controller.reconciler import Reconciler, _Known
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import CONFIG_MAPS, NETWORK_POLICIES, Json, Key, Resource
from dreambooth_operator.resources import RAY_JOBS

HOUR = 3600


def finished(*, deployment: str = "Complete") -> World:
    world = World(make_job(backoffLimit=0))
    world.reconcile()
    running(world)
    world.reconcile()
    assert world.status.ray_cluster
    world.kuberay(world.ray_job, deployment=deployment, job="SUCCEEDED" if deployment == "Complete" else "FAILED")
    world.reconcile()
    return world


def just_created() -> World:
    """A RayJob has been created, and the controller is interrupted."""
    world = World(make_job())
    world.reconcile(max_actions=4)
    assert world.live
    return world


def test_config_map_of_an_attempt_belongs_to_its_ray_job() -> None:
    world = just_created()
    assert not world.config_maps
    world.reconcile()
    assert world.config_maps == {world.ray_job: world.ray_jobs[world.ray_job].uid}
    found = resolve(make_job(), RUNTIME, [])
    assert isinstance(found, ResolvedJob)
    owner = dict(attempt_objects(make_job(), 1, found))[CONFIG_MAPS]["metadata"]["ownerReferences"]
    name = world.ray_job
    assert owner == [{"apiVersion": "ray.io/v1", "kind": "RayJob", "name": name, "uid": "r1", "controller": True}]


@pytest.mark.parametrize("max_actions", range(6))
def test_config_map_exists_before_its_ray_job_is_recorded(max_actions: int) -> None:
    world = just_created()
    done = world.reconcile(max_actions=max_actions)
    assert world.status.ray_job_uid is None or world.config_maps
    world.reconcile()
    assert world.status.ray_job_uid
    assert world.config_maps
    assert done <= 3


def test_attempt_whose_runtime_changed_during_its_creation_starts_again() -> None:
    world = just_created()
    assert RUNTIME.spec
    defaults = RUNTIME.spec.defaults.model_copy(update={"steps": 7})
    world.runtime = dataclasses.replace(RUNTIME, spec=RUNTIME.spec.model_copy(update={"defaults": defaults}))
    world.reconcile()
    assert world.status.phase is Phase.RETRYING
    assert world.status.failures == 0
    assert not world.config_maps, "the pods would reject a job file with another digest"
    world.collect()
    world.advance(11)
    world.reconcile()
    assert world.status.attempts == 2
    assert world.ray_job in world.config_maps


def test_pods_that_waited_for_the_config_map_are_not_blamed() -> None:
    world = just_created()
    world.advance(500)  # the operator was away
    world.reconcile()
    assert world.status.starting_since == world.now


@pytest.mark.parametrize("deployment", ["Complete", "Failed"])
def test_children_of_a_finished_job_are_deleted_after_an_hour(deployment: str) -> None:
    world = finished(deployment=deployment)
    name = world.ray_job
    world.advance(HOUR - 1)
    world.reconcile()
    assert not world.ray_jobs[name].deleting, "for kubectl describe"
    assert world.observe().decide().requeue_after_seconds == 1
    world.advance(1)
    world.reconcile()
    assert world.ray_jobs[name].deleting
    assert world.status.ray_job_name == name
    world.collect()
    decision = world.observe().decide()
    policy, write = decision.actions
    assert isinstance(policy, Delete)
    assert (policy.resource, policy.key.name) == (NETWORK_POLICIES, name)
    assert isinstance(write, WriteStatus), "last, so that an interrupted deletion is repeated"
    world.reconcile()
    status = world.status
    assert {status.ray_job_name, status.ray_job_uid, status.head_pod, status.ray_cluster} == {None}
    assert world.observe().decide().actions == ()


def test_ray_job_that_was_deleted_at_the_deadline_leaves_no_network_policy() -> None:
    world = World(make_job(activeDeadlineSeconds=60))
    world.reconcile()
    running(world)
    world.reconcile()
    world.advance(61)
    world.reconcile()
    assert world.status.phase is Phase.FAILED
    world.collect()
    world.advance(HOUR)
    kinds = [action.resource for action in world.observe().decide().actions if isinstance(action, Delete)]
    assert kinds == [NETWORK_POLICIES]


def test_retry_deletes_the_network_policy_of_the_last_attempt_once_its_pods_are_gone() -> None:
    world = World(make_job())
    world.reconcile()
    first = world.ray_job
    fail(world)
    world.reconcile()
    world.advance(11)
    world.reconcile()
    world.collect()
    deletion, write = world.observe().decide().actions
    assert isinstance(deletion, Delete)
    assert (deletion.resource, deletion.key.name) == (NETWORK_POLICIES, first)
    assert isinstance(write, WriteStatus)


def test_children_of_an_unfinished_job_are_kept() -> None:
    world = World(make_job())
    world.reconcile()
    suspend(world)
    world.reconcile()
    world.collect()
    world.advance(2 * HOUR)
    world.reconcile()
    assert world.status.phase is Phase.SUSPENDED
    assert world.status.ray_job_name


def test_retry_deletes_the_ray_job_of_the_last_attempt() -> None:
    world = World(make_job())
    world.reconcile()
    first = world.ray_job
    fail(world)
    world.reconcile()
    world.advance(11)
    world.reconcile()
    assert world.ray_jobs[first].deleting


class Found:
    """An API with one NetworkPolicy. Deletions are recorded."""

    def __init__(self, obj: Json | None) -> None:
        self.obj = obj
        self.deleted: list[Key] = []

    async def get(self, resource: Resource, key: Key) -> Json:
        if self.obj is None:
            raise ApiError(404, "NotFound", "not found")
        return self.obj

    async def delete(self, resource: Resource, key: Key, *, uid: str, foreground: bool) -> bool:
        self.deleted.append(key)
        return True


@pytest.mark.parametrize("case", ["own", "foreign", "missing"])
async def test_network_policy_of_somebody_else_is_not_deleted(case: str) -> None:
    job = make_job()
    found = resolve(job, RUNTIME, [])
    assert isinstance(found, ResolvedJob)
    policy = copy.deepcopy(dict(attempt_objects(job, 1, found))[NETWORK_POLICIES])
    if case == "foreign":
        policy["metadata"]["ownerReferences"][0]["uid"] = "u2"
    api: Any = Found(None if case == "missing" else policy)
    key = Key("team", policy["metadata"]["name"])
    await Reconciler(cast("Api", api), SETTINGS, now=lambda: START, progress_ca=str)._carry_out(
        job, Decision((Delete(NETWORK_POLICIES, key, ""),)), _Known()
    )
    assert api.deleted == ([key] if case == "own" else [])


def test_config_map_is_created_with_the_first_attempt_only_once_the_ray_job_exists() -> None:
    world = World(make_job())
    world.reconcile(max_actions=1)
    created = [action.resource for action in world.observe().decide().actions if isinstance(action, Create)]
    assert created[-1] is RAY_JOBS
    assert CONFIG_MAPS not in created


def test_rejected_config_map_ends_the_attempt() -> None:
    world = World(make_job(backoffLimit=0))
    world.reconcile(max_actions=1)
    world.reconcile(max_actions=len(world.observe().decide().actions))
    snapshot = world.observe()
    assert [action.resource for action in snapshot.decide().actions if isinstance(action, Create)] == [CONFIG_MAPS]
    failure = Failure(reason="Forbidden", message="denied by an admission policy")
    snapshot.observed = dataclasses.replace(snapshot.observed, create_failure=failure)
    writes = [action.status for action in snapshot.decide().actions if isinstance(action, WriteStatus)]
    assert [status.last_failure for status in writes] == [failure]
