"""Latency from `kubectl apply` to the first training step and to the end, by stage.

Run `python bench/warm_start.py [--workers 2] [--steps 40]` as root with `tests/cluster` on PYTHONPATH. It starts a
Kubernetes cluster with one node on this machine, installs the operator, applies the sprites sample, and polls the job
several times per second. The stages add up to the total.
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
from dreambooth_api.status import TrainerPhase

Seen = dict[str, Any]
TENANT = "bench"


def _phase(*names: str) -> Callable[[Seen], bool]:
    return lambda seen: seen["job"].get("report", {}).get("phase") in names or seen["finished"]


def _after(phase: TrainerPhase) -> Callable[[Seen], bool]:
    order = list(TrainerPhase)
    return _phase(*order[order.index(phase) + 1 :])


# The condition that ends each stage, in order.
STAGES: dict[str, Callable[[Seen], bool]] = {
    "operator creates the RayJob": lambda seen: bool(seen["job"].get("rayJobUid")),
    "KubeRay creates pods, the head starts": lambda seen: seen["running"] >= 1,
    "the Ray head starts, then the worker pods": lambda seen: seen["running"] > seen["workers"],
    "the Ray workers start, pods become ready": lambda seen: seen["ready"] > seen["workers"],
    "KubeRay submits the job, the driver starts": _phase(*TrainerPhase),
    "prepare": _after(TrainerPhase.PREPARE),
    "class images": _after(TrainerPhase.CLASS_IMAGES),
    "encode": _after(TrainerPhase.ENCODE),
    "train: workers start, first step": lambda seen: seen["job"].get("training", {}).get("step", 0) > 0,
    "train: remaining steps": _after(TrainerPhase.TRAIN),
    "evaluate": _after(TrainerPhase.EVALUATE),
    "publish": lambda seen: seen["finished"],
}
FIRST_STEP = "train: workers start, first step"


def observe(cluster: NodeCluster, workers: int) -> Seen:
    """The status of the job, and the number of running and ready pods."""
    job = cluster.read(f"/apis/{API_VERSION}/namespaces/{TENANT}/dreamboothjobs/pink-dog").get("status", {})
    pods = cluster.read(f"/api/v1/namespaces/{TENANT}/pods")["items"]
    conditions = [c for pod in pods for c in pod["status"].get("conditions", [])]
    return {
        "job": job,
        "workers": workers,
        "running": sum(p["status"]["phase"] == "Running" for p in pods),
        "ready": sum(c["type"] == "Ready" and c["status"] == "True" for c in conditions),
        "finished": job.get("phase") in ("Succeeded", "Failed"),
    }


def measure(cluster: NodeCluster, workers: int) -> dict[str, float]:
    """Seconds from now until the end of each stage."""
    start = time.monotonic()
    ended: dict[str, float] = {}
    while len(ended) < len(STAGES):
        seen = observe(cluster, workers)
        for name in list(STAGES)[len(ended) :]:
            if not STAGES[name](seen):
                break
            ended[name] = time.monotonic() - start
        if seen["job"].get("phase") == "Failed":
            raise click.ClickException(yaml.safe_dump(seen["job"]))
        time.sleep(0.3)
    return ended


@click.command(help=__doc__)
@click.option("--workers", default=2, show_default=True)
@click.option("--steps", type=int, help="Training steps. Defaults to those of the sample.")
@click.option("--class-images", type=int, help="Number of class images. Defaults to that of the sample.")
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
    table = Table("stage", "seconds", "since apply", title="from apply to a published model")
    before = 0.0
    for name, at in ended.items():
        table.add_row(name, f"{at - before:.1f}", f"{at:.1f}", end_section=name == FIRST_STEP)
        before = at
    Console().print(table)


if __name__ == "__main__":
    main()
