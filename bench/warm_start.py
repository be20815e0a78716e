"""What a user waits for, from `kubectl apply` to the first training step and to the end, part by part.

`python bench/warm_start.py [--workers 2] [--steps 40]`, as root, with `tests/cluster` on PYTHONPATH:
starts a Kubernetes with one node on this machine, installs the operator, applies the sprites sample, and looks twice a
second. All parts add up to the whole; a part's share says where to look next.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import click
import yaml
from devcluster import NodeCluster
from devcluster.system import add_namespace, install_dreambooth, sample, sprites_runtime
from rich.console import Console
from rich.table import Table

from dreambooth_api.job import API_VERSION

Seen = dict[str, Any]
TENANT = "bench"


def _phase(*names: str) -> Callable[[Seen], bool]:
    return lambda seen: seen["job"].get("report", {}).get("phase") in names or seen["over"]


# What ends each part, in order.
PARTS: dict[str, Callable[[Seen], bool]] = {
    "operator creates the RayJob": lambda seen: bool(seen["job"].get("rayJobUid")),
    "KubeRay creates pods, the head starts": lambda seen: seen["running"] >= 1,
    "Ray's head starts, then the workers' pods": lambda seen: seen["running"] > seen["workers"],
    "Ray's workers start, pods are ready": lambda seen: seen["ready"] > seen["workers"],
    "KubeRay submits, the driver starts": _phase("Prepare", "ClassImages", "Encode", "Train", "Evaluate", "Publish"),
    "prepare": _phase("ClassImages", "Encode", "Train", "Evaluate", "Publish"),
    "class images": _phase("Encode", "Train", "Evaluate", "Publish"),
    "encode": _phase("Train", "Evaluate", "Publish"),
    "train: the group starts, first step": lambda seen: seen["job"].get("training", {}).get("step", 0) > 0,
    "train: the other steps": _phase("Evaluate", "Publish"),
    "evaluate": _phase("Publish"),
    "publish, end": lambda seen: seen["over"],
}
FIRST_STEP = "train: the group starts, first step"


def look(cluster: NodeCluster, workers: int) -> Seen:
    """The job's status, and how many of its pods run and are ready."""
    job = cluster.read(f"/apis/{API_VERSION}/namespaces/{TENANT}/dreamboothjobs/pink-dog").get("status", {})
    pods = cluster.read(f"/api/v1/namespaces/{TENANT}/pods")["items"]
    conditions = [c for pod in pods for c in pod["status"].get("conditions", [])]
    return {
        "job": job,
        "workers": workers,
        "running": sum(p["status"]["phase"] == "Running" for p in pods),
        "ready": sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions),
        "over": job.get("phase") in ("Succeeded", "Failed"),
    }


def measure(cluster: NodeCluster, workers: int) -> dict[str, float]:
    """Seconds from now to the end of each part."""
    start = time.monotonic()
    ended: dict[str, float] = {}
    while len(ended) < len(PARTS):
        seen = look(cluster, workers)
        for name in list(PARTS)[len(ended) :]:
            if not PARTS[name](seen):
                break
            ended[name] = time.monotonic() - start
        if seen["job"].get("phase") == "Failed":
            raise click.ClickException(yaml.safe_dump(seen["job"]))
        time.sleep(0.3)
    return ended


@click.command(help=__doc__)
@click.option("--workers", default=2, show_default=True)
@click.option("--steps", type=int, help="Training steps. Default: the sample's.")
@click.option("--class-images", type=int, help="Class images. Default: the sample's.")
def main(workers: int, steps: int | None, class_images: int | None) -> None:
    job = sample("sprites.yaml", namespace=TENANT)
    job["spec"] |= {"cluster": {"workers": workers}}
    if steps:
        job["spec"]["training"] = {"steps": steps}
    if class_images:
        job["spec"]["priorPreservation"] = {"numClassImages": class_images}
    with NodeCluster() as cluster:
        install_dreambooth(cluster)
        add_namespace(cluster, TENANT)
        cluster.add_volume(TENANT, "models")
        cluster.apply(sprites_runtime())
        cluster.apply(job)
        ended = measure(cluster, workers)
    table = Table("part", "seconds", "since apply", title="from apply to a published model")
    before = 0.0
    for name, at in ended.items():
        table.add_row(name, f"{at - before:.1f}", f"{at:.1f}", end_section=name == FIRST_STEP)
        before = at
    Console().print(table)


if __name__ == "__main__":
    main()
