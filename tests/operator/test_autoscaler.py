"""The pods of an elastic job, as the real KubeRay makes them."""

from __future__ import annotations

from typing import Any

from devcluster import ControlPlane
from fakeray import FakeRay
from operatorprocess import Operator, until

TOKEN_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"


def test_only_the_autoscaler_has_a_token_for_the_api(
    plane: ControlPlane, ray: FakeRay, operator: Operator, namespace: str
) -> None:
    job: dict[str, Any] = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "elastic", "namespace": namespace},
        "spec": {
            "subject": {"images": {"uri": "s3://photos/dog"}, "class": "dog"},
            "output": {"uri": "s3://models/dog"},
            "cluster": {"elastic": {"minWorkers": 1, "maxWorkers": 2}},
        },
    }
    plane.apply(job)

    def pods() -> dict[str, dict[str, Any]]:
        items = plane.get("pods", "-n", namespace, "-l", "dreambooth.dev/job=elastic")["items"]
        return {pod["metadata"]["labels"]["ray.io/node-type"]: pod["spec"] for pod in items}

    until("KubeRay has created both pods", lambda: len(pods()) == 2, 90)
    found = {
        container["name"]: {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
        for pod in pods().values()
        for container in pod["containers"]
    }
    assert sorted(name for name, mounts in found.items() if TOKEN_PATH in mounts) == ["autoscaler"]
    volume = found["autoscaler"][TOKEN_PATH]
    assert [name for name, mounts in found.items() if volume in mounts.values()] == ["autoscaler"]
    for pod in pods().values():
        assert pod["automountServiceAccountToken"] is False
