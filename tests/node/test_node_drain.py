"""A drained node, and an elastic job."""

from __future__ import annotations

import pytest
from devcluster import NodeCluster
from jobs import STEPS, Job, until

pytestmark = pytest.mark.long


def test_job_survives_draining_of_its_node(cluster: NodeCluster) -> None:
    grace = Job(cluster, "grace", evaluation={"enabled": False})
    until("training continues after a checkpoint", lambda: grace.step > 4, 300)
    (node,) = (item["metadata"]["name"] for item in cluster.get("nodes")["items"])
    cluster.kubectl("cordon", node)
    try:
        # Only the pods of the job are drained, because the operator has no other node.
        cluster.kubectl(
            "drain", node, "--pod-selector=dreambooth.dev/job=pink-dog", "--delete-emptydir-data",
            "--ignore-daemonsets", "--force", "--grace-period=5", "--timeout=120s",
        )  # fmt: skip
        until("the second attempt waits for a node", lambda: grace.status.get("attempts") == 2, 120)
        assert grace.status["phase"] not in ("Succeeded", "Failed")
        assert not grace.pods("head")
    finally:
        cluster.kubectl("uncordon", node)
    status = grace.succeeds()
    assert status["attempts"] == 2
    assert status["lastFailure"]["reason"] == "HeadLost"
    assert status["classImages"]["generated"] + status["classImages"]["reused"] == len(grace.class_images)


def test_elastic_job_trains_with_the_available_workers(cluster: NodeCluster) -> None:
    frank = Job(
        cluster,
        "frank",
        evaluation={"enabled": False},
        cluster={"workers": 1, "elastic": {"minWorkers": 1, "maxWorkers": 2}},
    )
    status = frank.succeeds()
    assert status["attempts"] == 1
    assert status["training"]["progress"] == f"{STEPS}/{STEPS}"
