"""Why pods wait: from their status and their events into the condition and status.message."""

from __future__ import annotations

import dataclasses

import pytest
from scenarios import messages
from simulation import World, make_job

from dreambooth_operator.controller.observed import RayCluster, read_ray_cluster
from dreambooth_operator.controller.observed_pods import Pod, explain_by_events, needs_event, read_pod
from dreambooth_operator.machinery.resources import Json

CLUSTER = RayCluster("c", "dog", "", "c-head", False, False, False, 0, 1, "HeadPodNotReady: not ready")


def pod(status: Json, *, name: str = "c-head", node_type: str = "head", node: str = "n1") -> Pod:
    labels = {"dreambooth.dev/job": "dog", "dreambooth.dev/attempt": "1", "ray.io/node-type": node_type}
    metadata = {"name": name, "uid": f"uid-{name}", "creationTimestamp": "2026-11-24T06:00:00Z", "labels": labels}
    return read_pod({"metadata": metadata, "spec": {"nodeName": node}, "status": status})


def waiting(reason: str, message: str, *, kind: str = "containerStatuses") -> Json:
    return {"phase": "Pending", kind: [{"state": {"waiting": {"reason": reason, "message": message}}}]}


def unschedulable(message: str) -> Json:
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return {"phase": "Pending", "conditions": [condition]}


def event(reason: str, message: str, time: str = "2026-11-24T06:00:00Z") -> Json:
    return {"type": "Warning", "reason": reason, "message": message, "lastTimestamp": time}


def world_with(*pods: Pod) -> World:
    world = World(make_job())
    world.reconcile()
    world.clusters[world.ray_job] = dataclasses.replace(CLUSTER, ray_job=world.ray_job)
    world.pods = list(pods)
    world.reconcile()
    return world


REASONS = {
    "no free GPU": (
        unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
        "Unschedulable: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu.",
    ),
    "image cannot be pulled": (
        waiting("ImagePullBackOff", "Back-off pulling image \"x:1\""), 'ImagePullBackOff: Back-off pulling image "x:1"',
    ),
    "a missing Secret in the environment": (
        waiting("CreateContainerConfigError", 'secret "nope" not found'),
        'CreateContainerConfigError: secret "nope" not found',
    ),
    "an init container": (
        waiting("ErrImagePull", "no such host", kind="initContainerStatuses"), "ErrImagePull: no such host",
    ),
    "evicted": (
        {"phase": "Failed", "reason": "Evicted", "message": "The node was low on resource: memory."},
        "Evicted: The node was low on resource: memory.",
    ),
    "several lines": (
        waiting("RunContainerError", "first\n\x1b[31msecond\r\nthird"), "RunContainerError: first second third",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REASONS)
def test_reason_of_a_pod_is_in_the_message_and_the_condition(name: str) -> None:
    status, expected = REASONS[name]
    world = world_with(pod(status))
    summary = f"Head not ready, 0 of 1 workers ready. Pod c-head: {expected}"
    assert world.status.message == f"Waiting for pods to become ready. {summary}"
    assert messages(world)["ClusterReady"] == summary


def test_reason_of_the_head_comes_before_those_of_workers() -> None:
    worker = pod(unschedulable("no GPU"), name="a-worker", node_type="worker")
    world = world_with(worker, pod(unschedulable("no memory")))
    assert "Pod c-head: Unschedulable: no memory" in world.status.message
    world = world_with(worker, pod(waiting("ContainerCreating", "")))
    assert "Pod a-worker: Unschedulable: no GPU" in world.status.message


def test_pods_of_other_attempts_and_ready_pods_are_ignored() -> None:
    other = dataclasses.replace(pod(unschedulable("no GPU")), attempt="2")
    ready = pod({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]})
    world = world_with(other, ready)
    assert world.status.message.endswith("HeadPodNotReady: not ready")


def test_latest_event_explains_a_pod_whose_status_has_no_reason() -> None:
    creating = pod(waiting("ContainerCreating", ""))
    assert needs_event(creating)
    assert world_with(creating).observe().decide().requeue_after_seconds == 15, "events are not watched"
    events = [
        event("FailedMount", 'MountVolume.SetUp failed for volume "images" : secret "nope" not found', "2026-11-24T07"),
        event("FailedScheduling", "old", "2026-11-24T06"),
        {"type": "Normal", "reason": "Scheduled", "lastTimestamp": "2026-11-24T08"},
    ]
    world = world_with(explain_by_events(creating, events))
    assert world.status.message.endswith(
        'Pod c-head: FailedMount: MountVolume.SetUp failed for volume "images" : secret "nope" not found'
    )
    assert explain_by_events(creating, []) == creating
    pulling = {**event("Pulling", "Pulling image", "2026-11-24T07"), "type": "Normal"}
    assert explain_by_events(creating, [*events, pulling]) == creating, "the volumes are mounted"


@pytest.mark.parametrize("other", [pod({}, node=""), pod(unschedulable("no GPU"))])
def test_events_are_requested_only_for_pods_that_wait_on_a_node(other: Pod) -> None:
    assert not needs_event(other)


def test_message_of_kuberay_is_one_line() -> None:
    condition = {
        "type": "ReplicaFailure",
        "status": "True",
        "reason": "FailedCreateHeadPod",
        "message": "a\nb\x1b[1m c",
    }
    cluster = read_ray_cluster({"metadata": {"name": "c"}, "status": {"conditions": [condition]}})
    assert cluster.trouble == "FailedCreateHeadPod: a b c"
