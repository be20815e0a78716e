"""The real Kueue: users share a queue with capacity for one job, and an elastic job is admitted."""

from __future__ import annotations

from typing import Any

import pytest
from devcluster import NodeCluster
from devcluster.services import install_kueue
from devcluster.system import add_namespace
from jobs import Job, until

pytestmark = pytest.mark.long
KUEUE = "kueue.x-k8s.io/v1beta2"
STEPS, SAVED_EVERY = 240, 10


@pytest.fixture(scope="module")
def queue(cluster: NodeCluster) -> None:
    """A ClusterQueue with capacity for one job, and a LocalQueue in the namespaces of two users."""
    install_kueue(cluster)
    quota = [{"name": "cpu", "nominalQuota": "1"}, {"name": "memory", "nominalQuota": "10Gi"}]
    flavors = [{"name": "cpu", "resources": quota}]
    spec: dict[str, Any] = {
        "namespaceSelector": {},
        "preemption": {"withinClusterQueue": "LowerPriority"},
        "resourceGroups": [{"coveredResources": ["cpu", "memory"], "flavors": flavors}],
    }
    cluster.apply(
        _object(KUEUE, "ResourceFlavor", "cpu"),
        _object(KUEUE, "ClusterQueue", "gpus", spec=spec),
        *(_object("scheduling.k8s.io/v1", "PriorityClass", name, value=value) for name, value in PRIORITIES.items()),
    )
    for tenant in ("dave", "erin", "finn"):
        add_namespace(cluster, tenant)
        cluster.apply(_object(KUEUE, "LocalQueue", "gpus", tenant, spec={"clusterQueue": "gpus"}))


PRIORITIES = {"low": 1, "high": 1000}


def test_job_of_higher_priority_preempts_and_the_other_resumes(cluster: NodeCluster, queue: None) -> None:
    one = {"cluster": {"workers": 1}, "evaluation": {"enabled": False}}
    long = {"training": {"steps": STEPS, "checkpointEverySteps": SAVED_EVERY}}
    dave = Job(cluster, "dave", **one | long, runPolicy={"queueName": "gpus", "priorityClassName": "low"})
    until("dave's job has a checkpoint", lambda: dave.step > SAVED_EVERY, 300)
    until("it is admitted", lambda: _condition(dave, "Queued").get("status") == "False")
    quick = {"priorPreservation": {"mode": "None"}, "training": {"steps": 24}}
    erin = Job(cluster, "erin", **one | quick, runPolicy={"queueName": "gpus", "priorityClassName": "high"})
    until("dave's job is preempted", lambda: dave.status["phase"] == "Queued", 120)
    assert "Waiting for admission by queue gpus" in _condition(dave, "Queued")["message"]
    preempted_at = dave.step
    assert preempted_at < STEPS
    assert erin.succeeds()["attempts"] == 1
    until("dave's job continues", lambda: dave.step != preempted_at, 300)
    assert dave.step > preempted_at - SAVED_EVERY, "it resumes from the checkpoint"
    status = dave.succeeds()
    assert (status["attempts"], status["failures"]) == (1, 0), "preemption is not a failure"
    assert status["classImages"]["generated"] + status["classImages"]["reused"] == status["classImages"]["wanted"]
    losses = (dave.volume / "pink-dog" / "work" / "losses.jsonl").read_text().splitlines()
    assert len(losses) == STEPS


def test_elastic_job_is_admitted_and_trains(cluster: NodeCluster, queue: None) -> None:
    elastic = {"workers": 1, "elastic": {"minWorkers": 1, "maxWorkers": 2}}
    short = {"evaluation": {"enabled": False}, "priorPreservation": {"mode": "None"}, "training": {"steps": 24}}
    finn = Job(cluster, "finn", cluster=elastic, **short, runPolicy={"queueName": "gpus"})
    until("it is admitted", lambda: _condition(finn, "Queued").get("status") == "False", 120)
    (workload, *_) = cluster.get("workloads.kueue.x-k8s.io", "-n", "finn")["items"]
    assert {c["type"]: c["status"] for c in workload["status"]["conditions"]}["Admitted"] == "True"
    status = finn.succeeds()
    assert (status["attempts"], status["failures"]) == (1, 0)
    assert status["training"]["progress"] == "24/24"


def _condition(job: Job, kind: str) -> dict[str, Any]:
    return next((c for c in job.status.get("conditions", []) if c["type"] == kind), {})


def _object(api_version: str, kind: str, name: str, namespace: str = "", **more: Any) -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace else {})
    return {"apiVersion": api_version, "kind": kind, "metadata": metadata, **more}
