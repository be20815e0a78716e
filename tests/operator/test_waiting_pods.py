"""Why a pod waits reaches status.message, on the real API server and with the operator's own permissions."""

from __future__ import annotations

import json

from devcluster import ControlPlane
from fakeray import FakeRay
from operatorprocess import Operator, until
from test_e2e import Job


def test_reasons_of_scheduler_and_kubelet_are_in_the_message(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    ray.without_workers.add(namespace)
    job = Job(plane, ray, namespace, "waiting")
    until("the worker pod exists", lambda: workers(plane, namespace), 60)
    (worker,) = workers(plane, namespace)
    name = worker["metadata"]["name"]
    claim = 'persistentvolumeclaim "models" not found'
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": claim}
    patch(plane, namespace, name, {"conditions": [condition]})
    until("the scheduler's reason", lambda: f"Pod {name}: Unschedulable: {claim}" in job.status["message"], 20)

    bind(plane, namespace, name)
    plane.apply(mount_event(worker, 'secret "nope" not found'))
    patch(plane, namespace, name, {"conditions": [{**condition, "status": "True"}]})
    expected = f'Pod {name}: FailedMount: secret "nope" not found'
    until("the kubelet's event", lambda: expected in job.status["message"], 30)
    ray.without_workers.clear()
    ray.finish(job.runs())
    job.reaches("Succeeded")


def workers(plane: ControlPlane, namespace: str) -> list[dict[str, dict[str, str]]]:
    return plane.get("pods", "-n", namespace, "-l", "ray.io/node-type=worker")["items"]


def patch(plane: ControlPlane, namespace: str, pod: str, status: object) -> None:
    content = json.dumps({"status": status})
    plane.kubectl("patch", "pod", pod, "-n", namespace, "--subresource=status", "--type=merge", "-p", content)


def bind(plane: ControlPlane, namespace: str, pod: str) -> None:
    binding = {
        "apiVersion": "v1", "kind": "Binding", "metadata": {"name": pod, "namespace": namespace},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "n1"},
    }  # fmt: skip
    path = f"/api/v1/namespaces/{namespace}/pods/{pod}/binding"
    plane.kubectl("create", "--raw", path, "-f", "-", stdin=json.dumps(binding))


def mount_event(pod: dict[str, dict[str, str]], message: str) -> dict[str, object]:
    metadata = pod["metadata"]
    about = {"apiVersion": "v1", "kind": "Pod", **{k: metadata[k] for k in ("name", "namespace", "uid")}}
    time = "2026-11-25T12:00:00Z"
    return {
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "mount", "namespace": metadata["namespace"]},
        "involvedObject": about, "type": "Warning", "reason": "FailedMount", "message": message,
        "source": {"component": "kubelet"}, "firstTimestamp": time, "lastTimestamp": time, "count": 1,
    }  # fmt: skip
