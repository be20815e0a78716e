"""The samples that compare methods and train a HyperNetwork, in pods, with data and results on claims."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from devcluster import NodeCluster
from devcluster.node import TRAINER_IMAGE
from devcluster.system import add_namespace, sample
from jobs import until

from dreambooth_trainer.benchmark.sprite_dataset import write_sprite_dataset

pytestmark = pytest.mark.long
TENANT = "bench"
SMALL = (
    "--base builtin:sprites --parallel 2 --seeds 2 --methods LoRA --keep-models --set training.steps=4"
    " --set priorPreservation.numClassImages=2 --set evaluation.imagesPerPrompt=1"
)
RESOURCES = {"requests": {"cpu": "100m", "memory": "1Gi"}, "limits": {"cpu": "1", "memory": "6Gi"}}


def small_benchmark() -> dict[str, Any]:
    """The sample for the embedded model, with the node's image and pods that fit on it."""
    benchmark = sample("benchmark.yaml", namespace=TENANT)
    spec = benchmark["spec"]
    command, _, _ = spec["entrypoint"].partition(" --base ")
    spec["entrypoint"] = f"{command} {SMALL}"
    cluster = spec["rayClusterSpec"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        fit_on_node(group["template"]["spec"])
        group["rayStartParams"]["object-store-memory"] = "100000000"
    return benchmark


def fit_on_node(pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    container |= {"image": TRAINER_IMAGE, "imagePullPolicy": "Never", "resources": RESOURCES}


@pytest.fixture(scope="module")
def results(cluster: NodeCluster) -> Path:
    """The folder of the benchmark on its claim."""
    add_namespace(cluster, TENANT)
    dataset = cluster.add_volume(TENANT, "dreambooth-dataset")
    dataset.rmdir()
    write_sprite_dataset(dataset, 2)
    dataset.chmod(0o755)  # the pods are another user
    return cluster.add_volume(TENANT, "dreambooth-benchmark") / "paper"


def test_benchmark_continues_on_a_new_head(cluster: NodeCluster, results: Path) -> None:
    cluster.apply(small_benchmark())

    def finished() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in results.glob("jobs/*/*/result.json")}

    def status() -> dict[str, Any]:
        return cluster.read(f"/apis/ray.io/v1/namespaces/{TENANT}/rayjobs/paper-benchmark").get("status", {})

    until("a job has a result", finished, 300)
    first, ray_cluster = finished(), status()["rayClusterName"]
    (head,) = cluster.get("pods", "-n", TENANT, "-l", "ray.io/node-type=head")["items"]
    cluster.kubectl("delete", "pod", "-n", TENANT, head["metadata"]["name"], "--force", "--grace-period=0")
    assert len(finished()) < 4, "jobs that the new head runs"
    until("the benchmark ends", lambda: status().get("jobDeploymentStatus") in ("Complete", "Failed"), 600)
    assert status()["jobStatus"] == "SUCCEEDED", json.dumps(status(), indent=1)
    assert (status()["rayClusterName"], status()["failed"]) == (ray_cluster, 0), "it is not another attempt"
    assert finished().items() >= first.items(), "a finished job is not repeated"
    summary = json.loads((results / "results.json").read_text())
    assert summary["jobs"] == len(summary["runs"]) == 4, "two subjects, two seeds"


def test_hypernetwork_is_trained_on_finished_jobs(cluster: NodeCluster, results: Path) -> None:
    """On the four of the benchmark."""
    assert list(results.glob("jobs/*/*/result.json"))
    models = cluster.add_volume(TENANT, "models")
    job = sample("hypernetwork.yaml", namespace=TENANT)
    pod = job["spec"]["template"]["spec"]
    fit_on_node(pod)
    pod["containers"][0]["command"] += ["--steps", "2"]
    (jobs,) = (volume for volume in pod["volumes"] if volume["name"] == "jobs")
    jobs["persistentVolumeClaim"]["claimName"] = "dreambooth-benchmark"
    cluster.apply(job)

    def status() -> dict[str, Any]:
        return cluster.read(f"/apis/batch/v1/namespaces/{TENANT}/jobs/dogs-network").get("status", {})

    until("the training ends", lambda: status().get("succeeded") or status().get("failed"), 300)
    assert status().get("succeeded"), cluster.kubectl("logs", "-n", TENANT, "job/dogs-network")
    assert sorted(path.name for path in (models / "dogs").iterdir()) == [
        "hypernetwork.json",
        "hypernetwork.safetensors",
    ]
