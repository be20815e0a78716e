"""A Ray cluster at RAY_ADDRESS that is too small for a job is an error with both numbers, not a silent wait."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dreambooth_api.errors import TransientError
from dreambooth_api.job import Cluster, Elastic, Resources
from dreambooth_trainer.cluster import capacity
from dreambooth_trainer.cluster.capacity import adds_nodes, shortage, wait_for_capacity

NODE = "node_c353de17a16c2e7dc3d4f33d976fe4d27739eae2fe9e146f30eb0dec"
FOUR_OF_TWO = "spec.cluster.workers: 4 worker(s) need 4 CPU(s), the Ray cluster has 2"


@pytest.mark.parametrize(
    ("cluster", "resources", "expected"),
    [
        (Cluster(workers=2), {"CPU": 2.0}, ""),
        (Cluster(workers=4), {"CPU": 2.0}, FOUR_OF_TWO),
        (
            Cluster(workers=2, resources=Resources(gpu=4)),
            {"CPU": 64.0, "GPU": 4.0},
            "spec.cluster.workers: 2 worker(s) with 4 GPU(s) each need 8 GPU(s), the Ray cluster has 4",
        ),
        (
            Cluster(workers=1, resources=Resources(gpu=1)),
            {"CPU": 64.0},
            "spec.cluster.workers: 1 worker(s) with 1 GPU(s) each need 1 GPU(s), the Ray cluster has 0",
        ),
        (Cluster(workers=2, resources=Resources(gpu=0)), {"CPU": 2.0, "GPU": 1.0}, ""),
        (
            Cluster(workers=2),
            {"CPU": 2.0, "GPU": 1.0},
            "spec.cluster.workers: 2 worker(s) with 1 GPU(s) each need 2 GPU(s), the Ray cluster has 1",
        ),
        (Cluster(elastic=Elastic(min_workers=1, max_workers=8)), {"CPU": 1.0}, ""),
        (
            Cluster(elastic=Elastic(min_workers=3, max_workers=8)),
            {"CPU": 1.0},
            "spec.cluster.elastic.minWorkers: 3 worker(s) need 3 CPU(s), the Ray cluster has 1",
        ),
    ],
)
def test_what_a_cluster_lacks(cluster: Cluster, resources: dict[str, float], expected: str) -> None:
    assert shortage(cluster, resources) == expected


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (None, False),
        ({}, False),
        ({"autoscaler_report": None}, False),
        ({"autoscaler_report": {"active_nodes": {NODE: 1}, "idle_nodes": None}}, False),
        ({"autoscaler_report": {"active_nodes": {"headgroup": 1}, "idle_nodes": None}}, True),
        ({"autoscaler_report": {"active_nodes": {}, "idle_nodes": {"node_group_a": 1}}}, True),
    ],
)
def test_an_autoscaler_is_found_by_its_status(status: dict[str, object] | None, expected: bool) -> None:
    assert adds_nodes(status if status is None else json.dumps(status).encode()) is expected


@pytest.fixture
def nodes(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The CPUs that the Ray cluster has at each poll. It has no autoscaler."""
    cpus: list[float] = []
    monkeypatch.setattr(capacity, "POLL_SECONDS", 0.01)
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: False)
    monkeypatch.setattr("ray.cluster_resources", lambda: {"CPU": cpus.pop(0) if len(cpus) > 1 else cpus[0]})
    return cpus


def test_nodes_that_join_soon_are_waited_for(nodes: list[float]) -> None:
    nodes += [2, 2, 4]
    notes: list[str] = []
    wait_for_capacity(Cluster(workers=4), notes.append)
    assert notes == [f"{FOUR_OF_TWO}. Waiting 60 s for more nodes."]


def test_a_cluster_that_stays_too_small_is_an_error(nodes: list[float]) -> None:
    nodes += [2]
    with pytest.raises(TransientError) as caught:
        wait_for_capacity(Cluster(workers=4), lambda line: None, seconds=0.05)
    assert str(caught.value).startswith(f"{FOUR_OF_TWO}, and no node joined within 0 s; start more nodes, or decrease")


def test_an_autoscaler_is_left_to_add_nodes(monkeypatch: pytest.MonkeyPatch, nodes: list[float]) -> None:
    nodes += [2]
    monkeypatch.setattr(capacity, "has_autoscaler", lambda: True)
    notes: list[str] = []
    wait_for_capacity(Cluster(workers=4), notes.append)
    assert notes == [f"{FOUR_OF_TWO}. Waiting for the cluster's autoscaler."]


@pytest.mark.trainer
def test_a_real_cluster_that_is_too_small_is_an_error() -> None:
    start = time.monotonic()
    command = [sys.executable, str(Path(__file__).with_name("fake_cluster.py")), "too_small"]
    result = json.loads(
        subprocess.run(command, stdout=subprocess.PIPE, check=True, timeout=300).stdout.splitlines()[-1]
    )
    assert result["error"].startswith("spec.cluster.workers: 2 worker(s) with 4 GPU(s) each need 8 GPU(s), the Ray cl")
    assert not result["autoscaler"]
    assert time.monotonic() - start < 200
