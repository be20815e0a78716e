"""A GPU cluster as far as pods go: a node that advertises GPUs and RDMA devices, and a runtime that uses all of it.

The node has no device plugin and no driver: containers get no device, which the trainer must notice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest
from devcluster import NodeCluster
from devcluster.system import add_namespace, sprites_runtime
from jobs import Job

RDMA = "rdma/hca_shared_devices_a"
CAPACITY = {"nvidia.com/gpu": "8", RDMA: "16"}
HUB = "/dreambooth/models"


@pytest.fixture
def gpu_node(cluster: NodeCluster) -> Iterator[None]:
    """Extended resources in the status of the node, as a device plugin puts them there."""
    (node,) = (item["metadata"]["name"] for item in cluster.get("nodes")["items"])
    patch(cluster, node, CAPACITY)
    yield
    patch(cluster, node, dict.fromkeys(CAPACITY))


def patch(cluster: NodeCluster, node: str, capacity: dict[str, Any]) -> None:
    body = json.dumps({"status": {"capacity": capacity, "allocatable": capacity}})
    cluster.kubectl("patch", "node", node, "--subresource=status", "--type=merge", f"--patch={body}")


def gpu_runtime() -> dict[str, Any]:
    runtime = sprites_runtime("gpu")
    pods = runtime["spec"]["pods"]
    pods |= {
        "imagePullSecrets": [{"name": "registry"}],
        "env": [{"name": "NCCL_IB_HCA", "value": "mlx5"}],
        "annotations": {"example.com/team": "vision"},
    }
    devices = {RDMA: 1}
    pods["worker"] |= {
        "gpu": 2,
        "podTemplate": {
            "spec": {
                "containers": [{"name": "ray-worker", "resources": {"requests": devices, "limits": devices}}],
                "topologySpreadConstraints": [
                    {
                        "topologyKey": "kubernetes.io/hostname",
                        "maxSkew": 1,
                        "whenUnsatisfiable": "ScheduleAnyway",
                        "labelSelector": {"matchLabels": {"dreambooth.dev/job": "pink-dog"}},
                    }
                ],
            }
        },
    }
    runtime["spec"]["modelCache"] = {"claimName": "hub"}
    return runtime


def test_gpu_job_gets_its_devices_and_names_the_missing_driver(cluster: NodeCluster, gpu_node: None) -> None:
    tenant = "gina"
    add_namespace(cluster, tenant)
    (cluster.add_volume(tenant, "hub") / "marker").write_text("cached")
    auth = json.dumps({"auths": {"registry.example.com": {"auth": "Z2luYTpzZWNyZXQ="}}})
    cluster.apply(
        gpu_runtime(),
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": {"name": "registry", "namespace": tenant},
            "type": "kubernetes.io/dockerconfigjson",
            "stringData": {".dockerconfigjson": auth},
        },
    )
    job = Job(cluster, tenant, runtimeRef={"name": "gpu"}, runPolicy={"backoffLimit": 0})
    job.until("two workers run", lambda: len(job.pods("worker")) == 2, 180)
    worker, head = (job.running(kind)[0] for kind in ("worker", "head"))
    limits = worker["spec"]["containers"][0]["resources"]["limits"]
    assert (limits["nvidia.com/gpu"], limits[RDMA]) == ("2", "1")
    assert worker["spec"]["imagePullSecrets"] == [{"name": "registry"}]
    assert worker["metadata"]["annotations"]["example.com/team"] == "vision"
    assert job.exec("worker", "cat", f"{HUB}/marker") == "cached"
    assert job.exec("worker", "sh", "-c", f"touch {HUB}/new 2>/dev/null || echo refused").strip() == "refused"
    assert job.exec("worker", "printenv", "HF_HOME", "HF_HUB_OFFLINE", "NCCL_IB_HCA").split() == [HUB, "1", "mlx5"]
    assert "nvidia.com/gpu" not in head["spec"]["containers"][0]["resources"]["limits"], "the head takes no GPU"
    assert job.exec("head", "printenv", "NVIDIA_VISIBLE_DEVICES").strip() == "void"

    job.until("the job finishes", lambda: job.status.get("phase") in ("Succeeded", "Failed"), 300)
    assert job.status["phase"] == "Failed", json.dumps(job.status, indent=1)
    message = job.status["message"]
    assert "CUDA does not work" in message, message
    assert "driver found: none" in message, "no silent fallback to the CPU"
    assert job.status["attempts"] == 1
