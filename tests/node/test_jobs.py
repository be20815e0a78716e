"""Jobs of two tenants in real pods, from `kubectl apply` to published models, with failures on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster import NodeCluster, ProcessError
from devcluster.system import SYSTEM, add_namespace, sample
from jobs import CLASS_IMAGES, STEPS, Job, until

# Resources that a user of another namespace might request.
FOREIGN = ("secrets", "configmaps", "persistentvolumeclaims", "pods/exec", "pods/log", "dreamboothjobs")

# Requests the list of jobs of a Ray cluster with the token of the pod.
ASK_RAY = """
import os, sys, urllib.error, urllib.request
headers = {"Authorization": "Bearer " + os.environ["RAY_AUTH_TOKEN"]}
try:
    request = urllib.request.Request(f"http://{sys.argv[1]}:8265/api/jobs/", headers=headers)
    print(urllib.request.urlopen(request, timeout=60).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""


@pytest.fixture(scope="module")
def alice(cluster: NodeCluster) -> Job:
    """A job without failures, to compare bob's job with."""
    return Job(cluster, "alice")


def test_failures_do_not_change_the_model(cluster: NodeCluster, alice: Job) -> None:
    bob = Job(cluster, "bob", evaluation={"enabled": False})
    until("both jobs have pods", lambda: all(len(job.pods("worker")) == 2 for job in (alice, bob)), 180)
    bob.until("class images are generated", lambda: bob.class_images, 300)
    assert "Prepare" in bob.plugin("logs", "--tail=20"), "the output of the trainer"
    bob.kill("worker")
    alice.until("class images are generated", lambda: alice.class_images, 300)
    for whose, answer in ((bob, "200"), (alice, "403")):
        command = ["python", "-c", ASK_RAY, whose.address("head")]
        assert bob.exec("head", *command).strip() == answer, (
            f"bob's pod sends a request to the Ray cluster of {whose.tenant}"
        )
    bob.until("training continues after a checkpoint", lambda: bob.step > 4, 300)
    bob.kill("worker")
    cluster.kubectl("delete", "pods", "-n", SYSTEM, "--all", "--force", "--grace-period=0")
    seen = bob.step
    bob.until("training continues", lambda: bob.step != seen, 300)
    assert bob.step > 4, "it resumes from the checkpoint"
    bob.kill("head")
    undisturbed, status = alice.succeeds(), bob.succeeds()
    assert status["attempts"] == 2, "Ray replaces a worker, the operator a head"
    assert status["lastFailure"]["reason"] == "HeadLost"
    assert len(bob.class_images) == CLASS_IMAGES
    assert [p.read_bytes() for p in bob.class_images] == [p.read_bytes() for p in alice.class_images]
    assert status["output"]["digest"] == undisturbed["output"]["digest"]


def test_job_runs_from_apply_to_a_published_model(alice: Job, tmp_path: Path) -> None:
    status = alice.succeeds()
    assert status["attempts"] == 1
    assert status["classImages"] == {"wanted": CLASS_IMAGES, "reused": 0, "generated": CLASS_IMAGES}
    assert len(alice.class_images) == CLASS_IMAGES
    assert status["training"]["progress"] == f"{STEPS}/{STEPS}", "reported by the pod with its token"
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "ClusterReady", "ClassImagesReady", "Trained", "Evaluated", "Published", "Succeeded", "Ready"),
        "True",
    )
    assert 0 < float(status["scores"]["dino"]) < 1
    assert status["output"]["uri"] == "pvc://models/pink-dog/model"
    assert (alice.volume / "pink-dog" / "model" / "model_index.json").exists()
    assert str(tmp_path / "report.html") in alice.plugin("images", f"--out={tmp_path}")
    assert (tmp_path / "comparison.png").read_bytes() == (alice.volume / "pink-dog/model/comparison.png").read_bytes()
    assert "data:image/" in (tmp_path / "report.html").read_text()
    alice.until("its pods are gone", lambda: not alice.pods("head"), 120)
    assert "Train completed" in alice.plugin("logs"), "from the volume"


def test_tenant_cannot_access_resources_of_another(cluster: NodeCluster, alice: Job) -> None:
    add_namespace(cluster, "mallory")
    cluster.kubectl("create", "serviceaccount", "mallory", "-n", "mallory")
    cluster.kubectl(
        "create", "rolebinding", "edit", "--clusterrole=edit", "--serviceaccount=mallory:mallory", "-n", "mallory"
    )
    user = "--as=system:serviceaccount:mallory:mallory"
    for what in FOREIGN:
        cluster.kubectl("auth", "can-i", "get", what, "-n", "mallory", user, "--quiet")
        with pytest.raises(ProcessError, match="can-i"):
            cluster.kubectl("auth", "can-i", "get", what, "-n", "alice", user, "--quiet")
    job = sample("sprites.yaml", namespace="mallory")
    job["spec"]["output"] = {"pvc": {"claimName": "models", "path": "../alice/models"}}
    with pytest.raises(ProcessError, match="path"):
        cluster.apply(job)
    # Claims are namespaced: in another namespace the same name does not exist, and the pods stay pending.
    job["spec"]["output"] = {"pvc": {"claimName": "models", "path": "pink-dog"}}
    cluster.apply(job)
    selector = "dreambooth.dev/job=pink-dog"
    until("its pods are created", lambda: cluster.get("pods", "-n", "mallory", "-l", selector)["items"])
    events = "reason=FailedScheduling"
    until("they are pending", lambda: cluster.get("events", "-n", "mallory", f"--field-selector={events}")["items"])
    assert 'persistentvolumeclaim "models" not found' in cluster.kubectl("get", "events", "-n", "mallory")
    cluster.kubectl("delete", "dbj", "pink-dog", "-n", "mallory")
