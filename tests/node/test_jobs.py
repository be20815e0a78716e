"""Two tenants' jobs at once, from `kubectl apply` to published models, in real pods, and what may die on the way."""

from __future__ import annotations

from pathlib import Path

import pytest
from devcluster import NodeCluster, ProcessError
from devcluster.system import SYSTEM, add_namespace, sample
from jobs import CLASS_IMAGES, STEPS, Job, until

# Names that an adversary or a careless colleague might ask for: those of alice's job and volume.
FOREIGN = ("secrets", "configmaps", "persistentvolumeclaims", "pods/exec", "pods/log", "dreamboothjobs")

# What a pod's token opens: Ray's list of jobs, of whichever cluster.
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
    """A job whose pods nobody disturbs; bob's, beside it, is measured against it."""
    return Job(cluster, "alice")


def test_whatever_dies_the_model_is_the_same(cluster: NodeCluster, alice: Job) -> None:
    bob = Job(cluster, "bob", evaluation={"enabled": False})
    until("both have their pods", lambda: all(len(job.pods("worker")) == 2 for job in (alice, bob)), 180)
    bob.until("class images come", lambda: bob.class_images, 300)
    assert "prepare" in bob.plugin("logs", "--tail=20"), "what the trainer prints"
    bob.kill("worker")
    alice.until("class images come", lambda: alice.class_images, 300)
    for whose, answer in ((bob, "200"), (alice, "403")):
        command = ["python", "-c", ASK_RAY, whose.address("head")]
        assert bob.exec("head", *command).strip() == answer, f"bob's pod asks the Ray of {whose.tenant}"
    bob.until("training goes on after a checkpoint", lambda: bob.step > 4, 300)
    bob.kill("worker")
    cluster.kubectl("delete", "pods", "-n", SYSTEM, "--all", "--force", "--grace-period=0")
    seen = bob.step
    bob.until("training goes on", lambda: bob.step != seen, 300)
    assert bob.step > 4, "at its checkpoint, not from the start"
    bob.kill("head")
    undisturbed, status = alice.succeeds(), bob.succeeds()
    assert status["attempts"] == 2, "a worker is Ray's to replace, a head is ours"
    assert status["lastFailure"]["reason"] == "HeadLost"
    assert len(bob.class_images) == CLASS_IMAGES
    assert [p.read_bytes() for p in bob.class_images] == [p.read_bytes() for p in alice.class_images]
    assert status["output"]["digest"] == undisturbed["output"]["digest"]


def test_from_apply_to_a_published_model(alice: Job, tmp_path: Path) -> None:
    status = alice.succeeds()
    assert status["attempts"] == 1
    assert status["classImages"] == {"wanted": CLASS_IMAGES, "reused": 0, "generated": CLASS_IMAGES}
    assert len(alice.class_images) == CLASS_IMAGES
    assert status["training"]["progress"] == f"{STEPS}/{STEPS}", "told from the pod, with its own token"
    assert {c["type"]: c["status"] for c in status["conditions"]} == dict.fromkeys(
        ("Accepted", "ClusterReady", "ClassImagesReady", "Trained", "Evaluated", "Published", "Succeeded"), "True"
    )
    assert 0 < float(status["scores"]["dino"]) < 1
    assert status["output"]["uri"] == "pvc://models/pink-dog/model"
    assert (alice.volume / "pink-dog" / "model" / "model_index.json").exists()
    assert str(tmp_path / "report.html") in alice.plugin("images", f"--out={tmp_path}")
    assert (tmp_path / "comparison.png").read_bytes() == (alice.volume / "pink-dog/model/comparison.png").read_bytes()
    assert "data:image/" in (tmp_path / "report.html").read_text()


def test_a_tenant_reaches_nothing_of_another(cluster: NodeCluster, alice: Job) -> None:
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
    # A claim is its namespace's: the same name in another leads to nothing, and the pods wait.
    job["spec"]["output"] = {"pvc": {"claimName": "models", "path": "pink-dog"}}
    cluster.apply(job)
    selector = "dreambooth.dev/job=pink-dog"
    until("its pods are made", lambda: cluster.get("pods", "-n", "mallory", "-l", selector)["items"])
    events = "reason=FailedScheduling"
    until("they wait", lambda: cluster.get("events", "-n", "mallory", f"--field-selector={events}")["items"])
    assert 'persistentvolumeclaim "models" not found' in cluster.kubectl("get", "events", "-n", "mallory")
    cluster.kubectl("delete", "dbj", "pink-dog", "-n", "mallory")
