"""The pool on a cluster that grows and shrinks while it runs calls."""

from __future__ import annotations

import pytest
from test_hardware import run_on_fake_cluster

from dreambooth_api.job import Cluster
from dreambooth_trainer.cluster.hardware import requested_cpus


@pytest.mark.trainer
def test_the_pool_uses_nodes_that_join_and_survives_the_loss_of_a_node() -> None:
    result = run_on_fake_cluster("elastic_cluster")
    assert result["calls"] == 30
    assert result["first lost"]
    first, second = result["nodes"]
    assert first >= 4
    assert second >= 10


@pytest.mark.parametrize(
    ("spec", "cores"),
    [
        ({}, None),
        ({"workers": 3, "resources": {"cpu": "1500m"}}, 4.5),
        ({"elastic": {"minWorkers": 1, "maxWorkers": 4}, "resources": {"cpu": "8"}}, 32),
    ],
)
def test_a_job_requests_cores_for_all_of_its_workers(spec: dict[str, object], cores: float | None) -> None:
    assert requested_cpus(Cluster.model_validate(spec)) == cores
