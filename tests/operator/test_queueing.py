"""spec.runPolicy.queueName: admission and preemption by Kueue."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from scenarios import (
    Scenario,
    admit,
    check_scenario,
    check_scenario_with_interruptions,
    preempt,
    running,
    succeed,
    wait,
)
from simulation import RUNTIME, SETTINGS, World, job_with, make_job

from dreambooth_api.runtime import RuntimeSpec
from dreambooth_api.status import Phase
from dreambooth_operator.controller.children.rayjob import build_ray_job
from dreambooth_operator.controller.observed import Runtime
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.machinery.resources import Json

RUNTIME_FIELDS = {"image": "trainer:1", "storage": {"claimName": "work"}, "bounds": {"outputs": ["s3://b"]}}
SCENARIOS = {
    "a queue admits, preempts and admits the job": Scenario(
        [wait(1000), admit, running, preempt, wait(1000), admit, running, succeed],
        Phase.SUCCEEDED, "Succeeded", 1, {"queueName": "gpus"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_as_expected(name: str) -> None:
    check_scenario(SCENARIOS[name])


@pytest.mark.parametrize("name", SCENARIOS)
def test_scenario_ends_the_same_when_interrupted(name: str) -> None:
    check_scenario_with_interruptions(SCENARIOS[name])


def test_readmission_while_no_operator_runs_costs_no_attempt() -> None:
    world = World(make_job(queueName="gpus"))
    world.reconcile()
    for step in (admit, running):
        step(world)
        world.reconcile()
    name = world.ray_job
    # Kueue preempts and admits the RayJob, and KubeRay creates another cluster with another head.
    preempt(world)
    admit(world)
    world.kuberay(name, deployment="Initializing", job="")
    again = {"name": f"{name}-d", "head": "another-head"}
    world.clusters[name] = dataclasses.replace(world.clusters[name], **again, head_ready=False)
    world.reconcile()
    assert (world.status.phase, world.status.head_pod) == (Phase.STARTING, None)
    world.kuberay(name, deployment="Running", job="RUNNING")
    world.clusters[name] = dataclasses.replace(world.clusters[name], **again, head_ready=True)
    world.reconcile()
    assert (world.status.phase, world.status.head_pod) == (Phase.RUNNING, "another-head")
    assert (world.status.attempts, world.status.failures) == (1, 0)
    # The attempt is bound to the head of the new cluster.
    world.clusters[name] = dataclasses.replace(world.clusters[name], head="third-head")
    world.reconcile()
    assert (world.status.phase, world.status.failures) == (Phase.RETRYING, 1)


def ray_job(cluster: dict[str, Any] | None = None, runtime: Runtime = RUNTIME, **policy: object) -> Json:
    job = job_with({"cluster": cluster or {}, "runPolicy": policy})
    resolved = resolve(job, runtime, [])
    assert isinstance(resolved, ResolvedJob)
    return build_ray_job(job, 1, resolved, SETTINGS)


def test_ray_job_of_a_queue_has_its_label_and_starts_suspended() -> None:
    queued = ray_job(queueName="gpus")
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "gpus"
    assert queued["spec"]["suspend"] is True
    assert ray_job()["spec"]["suspend"] is False


def test_elastic_ray_job_is_marked_for_kueue() -> None:
    # Also without a queue name: the cluster may have a default queue, or Kueue may manage all jobs.
    policies: list[dict[str, Any]] = [{"queueName": "gpus"}, {}]
    for policy in policies:
        made = ray_job({"elastic": {"minWorkers": 1, "maxWorkers": 4}}, **policy)
        assert made["spec"]["rayClusterSpec"]["enableInTreeAutoscaling"] is True
        assert made["metadata"]["annotations"]["kueue.x-k8s.io/elastic-job"] == "true"
    assert "kueue.x-k8s.io/elastic-job" not in ray_job(queueName="gpus")["metadata"]["annotations"]


@pytest.mark.parametrize("policy", [{}, {"queueName": "gpus"}])
def test_ray_job_has_the_workload_priority_class(policy: dict[str, Any]) -> None:
    bounds = {"outputs": ["s3://b"], "workloadPriorityClassNames": ["urgent"]}
    runtime = Runtime("default", RuntimeSpec.model_validate(RUNTIME_FIELDS | {"bounds": bounds}))
    labels = ray_job(runtime=runtime, workloadPriorityClassName="urgent", **policy)["metadata"]["labels"]
    assert labels["kueue.x-k8s.io/priority-class"] == "urgent"
    assert labels.get("kueue.x-k8s.io/queue-name") == policy.get("queueName")
    assert "kueue.x-k8s.io/priority-class" not in ray_job(**policy)["metadata"]["labels"]


def test_topology_annotations_reach_the_pods_of_their_group() -> None:
    annotations = {"kueue.x-k8s.io/podset-required-topology": "cloud.example/rack"}
    pods = {"worker": {"podTemplate": {"metadata": {"annotations": annotations}}}}
    runtime = Runtime("default", RuntimeSpec.model_validate(RUNTIME_FIELDS | {"pods": pods}))
    cluster = ray_job(runtime=runtime, queueName="gpus")["spec"]["rayClusterSpec"]
    assert cluster["workerGroupSpecs"][0]["template"]["metadata"]["annotations"].items() >= annotations.items()
    assert not cluster["headGroupSpec"]["template"]["metadata"]["annotations"].keys() & annotations.keys()


def test_job_that_kueue_suspends_without_a_queue_says_what_to_set() -> None:
    world = World(make_job())
    world.reconcile()
    world.kuberay(world.ray_job, suspended=True)  # manageJobsWithoutQueueName
    world.reconcile()
    assert world.status.phase is Phase.QUEUED
    assert "set spec.runPolicy.queueName" in world.status.message
