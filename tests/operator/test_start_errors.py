"""Pods that cannot start until a user corrects an error: the job ends with the remedy. Other reasons wait."""

from __future__ import annotations

import dataclasses

import pytest
from simulation import World
from test_pods import pod, unschedulable, waiting, world_with

from dreambooth_api.status import Phase
from dreambooth_operator.controller.observed_pods import explain_by_events
from dreambooth_operator.machinery.resources import Json

FORBIDDEN = 'pods "c-head" is forbidden: '


def mount_failure(message: str) -> World:
    event: Json = {"type": "Warning", "reason": "FailedMount", "message": message, "lastTimestamp": "2026-11-24T06"}
    return world_with(explain_by_events(pod(waiting("ContainerCreating", "")), [event]))


def replica_failure(message: str) -> World:
    world = world_with()
    cluster = world.clusters[world.ray_job]
    trouble = f"FailedCreateHeadPod: FailedToCreateHeadPod {message}"
    world.clusters[world.ray_job] = dataclasses.replace(cluster, trouble=trouble)
    world.reconcile()
    return world


USER_ERRORS = {
    "a missing photo Secret": (
        lambda: mount_failure('MountVolume.SetUp failed for volume "images" : secret "nope" not found'),
        "SecretNotFound", "Create Secret nope in namespace team",
    ),
    "a missing Secret in the environment": (
        lambda: world_with(pod(waiting("CreateContainerConfigError", 'secret "hub" not found'))),
        "SecretNotFound", "Create Secret hub in namespace team",
    ),
    "a missing ConfigMap": (
        lambda: mount_failure('MountVolume.SetUp failed for volume "images" : configmap "nope" not found'),
        "ConfigMapNotFound", "Create ConfigMap nope in namespace team",
    ),
    "a missing key": (
        lambda: world_with(pod(waiting("CreateContainerConfigError", "couldn't find key token in Secret team/hub"))),
        "KeyNotFound", "Add key token",
    ),
    "a missing claim": (
        lambda: world_with(
            pod(unschedulable('0/1 nodes are available: persistentvolumeclaim "models" not found. Not helpful.'))
        ),
        "VolumeClaimNotFound", "Create PersistentVolumeClaim models in namespace team",
    ),
    "a missing PriorityClass": (
        lambda: replica_failure(f"{FORBIDDEN}no PriorityClass with name urgent was found"),
        "PriorityClassNotFound", "kubectl get priorityclasses",
    ),
    "a LimitRange": (
        lambda: replica_failure(f"{FORBIDDEN}maximum memory usage per Container is 1Gi, but limit is 4Gi"),
        "LimitRangeExceeded", "within the LimitRange of namespace team",
    ),
    "an invalid image name": (
        lambda: world_with(pod(waiting("InvalidImageName", "couldn't parse image name"))),
        "InvalidImageName", "Correct spec.cluster.image",
    ),
    "a missing image": (
        lambda: world_with(pod(waiting("ErrImagePull", 'failed to resolve reference "x:9": docker.io/x:9: not found'))),
        "ImageNotFound", "Correct spec.cluster.image",
    ),
}  # fmt: skip
WAITS = {
    "a full quota": lambda: replica_failure(f"{FORBIDDEN}exceeded quota: gpus, requested: nvidia.com/gpu=8, used: 8"),
    "no free GPU": lambda: world_with(pod(unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."))),
    "an unbound claim": lambda: world_with(pod(unschedulable("pod has unbound immediate PersistentVolumeClaims"))),
    "a registry that does not respond": lambda: world_with(
        pod(waiting("ErrImagePull", "dial tcp: lookup registry.test: no such host"))
    ),
}


@pytest.mark.parametrize("name", USER_ERRORS)
def test_user_error_ends_the_job_with_the_remedy_after_a_grace_period(name: str) -> None:
    build, reason, remedy = USER_ERRORS[name]
    world = build()
    assert world.status.phase is Phase.STARTING
    assert world.observe().decide().requeue_after_seconds is not None
    world.advance(60)
    world.reconcile()
    assert world.status.phase is Phase.FAILED
    assert world.status.last_failure
    assert world.status.last_failure.reason == reason
    assert remedy in world.status.message
    assert "\n" not in world.status.message
    world.collect()
    assert not world.live, "the pods are deleted"


@pytest.mark.parametrize("name", USER_ERRORS)
def test_user_error_that_is_corrected_in_time_does_not_end_the_job(name: str) -> None:
    world = USER_ERRORS[name][0]()
    world.advance(30)
    world.pods.clear()
    world.clusters.clear()
    world.kuberay(world.ray_job, deployment="Running")
    world.reconcile()
    world.advance(60)
    world.reconcile()
    assert world.status.phase is Phase.RUNNING


@pytest.mark.parametrize("name", WAITS)
def test_other_reasons_wait(name: str) -> None:
    world = WAITS[name]()
    world.advance(100)
    world.reconcile()
    assert world.status.phase is Phase.STARTING
    assert len(world.status.message) > len("Waiting for pods to become ready. Head not ready, 0 of 1 workers ready.")
