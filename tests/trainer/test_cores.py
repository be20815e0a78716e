"""More workers than this machine has cores are rejected with both numbers."""

from __future__ import annotations

import pytest

from dreambooth_api.errors import UserError
from dreambooth_api.job import Cluster, Elastic
from dreambooth_trainer.cluster import hardware
from dreambooth_trainer.cluster.hardware import Hardware, check_cores

CPU = Hardware(0, "CPU", 2**30, bf16=False)
GPU = Hardware(1, "A100", 2**30, bf16=True)


@pytest.fixture(autouse=True)
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware, "machine_cores", lambda: 2)


def test_more_workers_than_cores_are_rejected() -> None:
    with pytest.raises(UserError) as caught:
        check_cores(CPU, Cluster(workers=4))
    assert str(caught.value) == (
        "spec.cluster.workers: 4: needs 4 cores, one for each worker, and this machine has 2; set 2, or set "
        "RAY_ADDRESS to a larger Ray cluster"
    )
    with pytest.raises(UserError, match=r"^spec.cluster.elastic.minWorkers: 3: needs 3 cores"):
        check_cores(CPU, Cluster(elastic=Elastic(min_workers=3, max_workers=4)))


def test_workers_that_can_start_are_accepted(monkeypatch: pytest.MonkeyPatch) -> None:
    check_cores(CPU, Cluster(workers=2))
    check_cores(CPU, Cluster(elastic=Elastic(min_workers=1, max_workers=4)))
    check_cores(GPU, Cluster(workers=4))
    monkeypatch.setattr("ray.is_initialized", lambda: True)
    with pytest.raises(UserError):  # a local session, as of a benchmark
        check_cores(CPU, Cluster(workers=4))
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    check_cores(CPU, Cluster(workers=4))
