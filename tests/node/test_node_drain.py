"""A node that is emptied, and a job that takes the workers it gets."""

from __future__ import annotations

import pytest
from devcluster import NodeCluster
from jobs import STEPS, Job, until

pytestmark = pytest.mark.long


def test_a_job_survives_the_draining_of_its_node(cluster: NodeCluster) -> None:
    grace = Job(cluster, "grace", evaluation={"enabled": False})
    until("training goes on after a checkpoint", lambda: grace.step > 4, 300)
    (node,) = (item["metadata"]["name"] for item in cluster.get("nodes")["items"])
    cluster.kubectl("cordon", node)
    try:
        # As `kubectl drain` does to every pod; here only to the job's, for the operator has no other node to go to.
        cluster.kubectl(
            "drain", node, "--pod-selector=dreambooth.dev/job=pink-dog", "--delete-emptydir-data",
            "--ignore-daemonsets", "--force", "--grace-period=5", "--timeout=120s",
        )  # fmt: skip
        until("a second attempt waits for a node", lambda: grace.status.get("attempts") == 2, 120)
        assert grace.status["phase"] not in ("Succeeded", "Failed")
        assert not grace.pods("head")
    finally:
        cluster.kubectl("uncordon", node)
    status = grace.succeeds()
    assert status["attempts"] == 2
    assert status["lastFailure"]["reason"] == "HeadLost"
    assert status["classImages"]["generated"] + status["classImages"]["reused"] == len(grace.class_images)


def test_an_elastic_job_trains_with_the_workers_it_gets(cluster: NodeCluster) -> None:
    frank = Job(
        cluster,
        "frank",
        evaluation={"enabled": False},
        cluster={"workers": 1, "elastic": {"minWorkers": 1, "maxWorkers": 2}},
    )
    status = frank.succeeds()
    assert status["attempts"] == 1
    assert status["training"]["progress"] == f"{STEPS}/{STEPS}"
