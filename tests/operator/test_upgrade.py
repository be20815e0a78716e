"""Upgrade and rollback of the chart, with the real Helm, while a job runs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, helm, kuberay_crds
from fakeray import FakeRay, fake_ray
from operatorprocess import RUNTIME, SYSTEM, Operator, until
from test_e2e import Job, report

CHART = Path(__file__).resolve().parents[2] / "charts" / "dreambooth-operator"
JOBS = "dreamboothjobs.dreambooth.dev"
RELEASE = ("dreambooth-operator", "-n", SYSTEM)


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A separate control plane with KubeRay's CRDs. Ours were applied by kubectl, and Helm adopts them."""
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds(), CHART.parents[1] / "manifests" / "crd")
        plane.start_controllers()
        _adopt(plane)
        helm(plane, "install", *RELEASE[:1], str(CHART), *RELEASE[1:], "--create-namespace")
        yield plane


@pytest.fixture(scope="module")
def ray(plane: ControlPlane) -> Iterator[FakeRay]:
    with fake_ray(plane) as ray:
        plane.start_kuberay()
        yield ray


@pytest.fixture
def newer(tmp_path: Path) -> Path:
    """The chart of a later version, whose CRD has new fields. New phases and conditions need no change of the CRD."""
    chart = tmp_path / CHART.name
    shutil.copytree(CHART, chart)
    path = chart / "templates" / "crds" / f"{JOBS}.yaml"
    crd = yaml.safe_load("".join(path.read_text().splitlines(keepends=True)[1:-1]))
    properties = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]
    properties["spec"]["properties"]["priority"] = {"type": "integer"}
    status = properties["status"]["properties"]
    status["sparsity"] = {"type": "number"}
    path.write_text(yaml.safe_dump(crd))
    return chart


def _adopt(plane: ControlPlane) -> None:
    """What docs/operations/upgrade.md says."""
    for crd in (JOBS, "dreamboothruntimes.dreambooth.dev", "localdreamboothruntimes.dreambooth.dev"):
        plane.kubectl("label", "crd", crd, "app.kubernetes.io/managed-by=Helm", "--overwrite")
        owner = ("meta.helm.sh/release-name=dreambooth-operator", f"meta.helm.sh/release-namespace={SYSTEM}")
        plane.kubectl("annotate", "crd", crd, *owner, "--overwrite")


def _fields(plane: ControlPlane) -> dict[str, Any]:
    schema = plane.get("crd", JOBS)["spec"]["versions"][0]["schema"]["openAPIV3Schema"]
    return schema["properties"]["spec"]["properties"]


def test_upgrade_and_rollback_keep_a_running_job(plane: ControlPlane, ray: FakeRay, newer: Path) -> None:
    plane.apply(RUNTIME, {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "team"}})
    operator = Operator(plane, "operator").start()
    job = Job(plane, ray, "team", "good")
    run = job.runs()
    assert report(plane, operator, job, {"phase": "Train", "step": 40, "steps": 100})[0] == 202
    before, (ray_job,) = job.status, job.children("rayjobs")

    helm(plane, "upgrade", *RELEASE[:1], str(newer), *RELEASE[1:])
    assert "priority" in _fields(plane), "Helm upgrades the CRDs"
    operator.process.kill()
    later = {"type": "Certified", "status": "True", "reason": "Yes", "lastTransitionTime": "2026-11-24T06:00:00Z"}
    written = {"phase": "Certified", "sparsity": 0.5, "conditions": [*before["conditions"], later]}
    patch = ("--subresource=status", "--type=merge", "-p", json.dumps({"status": written}))
    plane.kubectl("patch", "dbj", job.name, "-n", job.namespace, *patch)

    helm(plane, "rollback", *RELEASE[:1], "1", *RELEASE[1:])
    assert "priority" not in _fields(plane)
    operator.start()
    until("this operator has replaced the phase", lambda: job.status["phase"] == "Running")
    after = job.status
    assert "sparsity" not in after
    for field in ("attempts", "failures", "rayJobName", "rayJobUid", "startTime", "training", "report"):
        assert after[field] == before[field], field
    assert [child["metadata"]["uid"] for child in job.children("rayjobs")] == [ray_job["metadata"]["uid"]]

    newer_report = {"phase": "Distill", "step": 100, "steps": 100, "sparsity": 0.5, "scores": {"fid": 3.0}}
    assert report(plane, operator, job, newer_report)[0] == 202
    assert job.status["training"]["progress"] == "100/100"
    assert report(plane, operator, job, {"phase": "Publish", "output": {"uri": "s3://models/dog"}})[0] == 202
    ray.finish(run)
    job.reaches("Succeeded")
    assert len(ray.of(job.name)) == 1
    operator.process.kill()
