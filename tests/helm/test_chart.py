"""The Helm chart on the real API server: installation, equality with the kustomize manifests, and permissions."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import ControlPlane, ProcessError, binary, helm
from devcluster.plane import kuberay_crds

from dreambooth_operator.controller.observed import read_job, read_runtime
from dreambooth_operator.controller.resolve import ResolvedJob, choose_runtime, resolve

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "dreambooth-operator"
SYSTEM = "dreambooth-system"
ACCOUNT = f"system:serviceaccount:{SYSTEM}:dreambooth-operator"
CRDS = (
    "dreamboothjobs.dreambooth.dev",
    "dreamboothruntimes.dreambooth.dev",
    "localdreamboothruntimes.dreambooth.dev",
)
FORBIDDEN = (
    "get secrets", "create secrets", "update secrets", "get pods", "delete pods", "patch pods", "create pods",
    "get pods/log", "create pods/exec", "update rayjobs.ray.io", "patch rayjobs.ray.io",
    "create dreamboothjobs.dreambooth.dev",
    "update dreamboothruntimes.dreambooth.dev", "list localdreamboothruntimes.dreambooth.dev",
    "delete configmaps", "get configmaps", "create clusterroles", "impersonate users", "delete namespaces",
    "update leases.coordination.k8s.io", "create serviceaccounts/token",
)  # fmt: skip


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A separate, empty control plane, so that it contains only what Helm installs."""
    with ControlPlane() as plane:
        plane.start_controllers()
        yield plane


@pytest.fixture(scope="module")
def rbac(plane: ControlPlane) -> ControlPlane:
    """The control plane with the operator's service account and its permissions."""
    for part in ("operator/namespace.yaml", "rbac/rbac.yaml"):
        plane.kubectl("apply", "--server-side", "-f", str(ROOT / "manifests" / part))
    return plane


def comparable(documents: str) -> dict[str, Any]:
    """Objects by kind and name, without the label managed-by."""
    found = {}
    for obj in filter(None, yaml.safe_load_all(documents)):
        for metadata in (obj["metadata"], obj.get("spec", {}).get("template", {}).get("metadata", {})):
            (metadata.get("labels") or {}).pop("app.kubernetes.io/managed-by", None)
        found[f"{obj['kind']}/{obj['metadata']['name']}"] = obj
    return found


def test_helm_and_kustomize_render_the_same_objects() -> None:
    chart = comparable(helm(None, "template", "dreambooth-operator", str(CHART), "-n", SYSTEM))
    command = [str(binary("kubectl")), "kustomize", str(ROOT / "manifests")]
    built = comparable(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert built.pop(f"Namespace/{SYSTEM}"), "kustomize contains the namespace, Helm creates it on request"
    for name in CRDS:
        policy = chart[f"CustomResourceDefinition/{name}"]["metadata"].pop("annotations")
        assert policy == {"helm.sh/resource-policy": "keep"}
    assert chart == built


def test_crds_can_be_left_to_others() -> None:
    assert "CustomResourceDefinition" not in helm(None, "template", str(CHART), "--set", "crds.enabled=false")


def test_helm_uninstall_keeps_the_crds(plane: ControlPlane) -> None:
    helm(plane, "install", "dreambooth-operator", str(CHART), "-n", SYSTEM, "--create-namespace")
    deployment = plane.get("deployment", "dreambooth-operator", "-n", SYSTEM)
    assert deployment["spec"]["replicas"] == 2
    assert {crd["metadata"]["name"] for crd in plane.get("crd")["items"]} == set(CRDS)
    helm(plane, "uninstall", "dreambooth-operator", "-n", SYSTEM, "--wait")
    kinds = "deployment,service,pdb,networkpolicy,role,rolebinding,clusterrole,clusterrolebinding,secret"
    left = [
        item["metadata"]["name"]
        for item in plane.get(kinds, "-A", "-l", "app.kubernetes.io/name=dreambooth-operator")["items"]
    ]
    assert left == []
    assert len(plane.get("crd")["items"]) == len(CRDS), "uninstalling the operator keeps the jobs"


@pytest.mark.parametrize(
    ("setting", "message"),
    [("replicas=0", "replicas"), ("replcias=2", "replcias"), ("logLevel=LOUD", "logLevel")],
)
def test_invalid_values_are_rejected(setting: str, message: str) -> None:
    with pytest.raises(ProcessError, match=message):
        helm(None, "template", str(CHART), "--set", setting)


def test_pods_satisfy_the_restricted_pod_security_standard(plane: ControlPlane) -> None:
    plane.kubectl("create", "namespace", "strict")
    plane.kubectl("label", "namespace", "strict", "pod-security.kubernetes.io/enforce=restricted")
    plane.kubectl("create", "serviceaccount", "dreambooth-operator", "-n", "strict")
    rendered = comparable(helm(None, "template", str(CHART), "-n", "strict"))
    template = rendered["Deployment/dreambooth-operator"]["spec"]["template"]
    plane.apply({"apiVersion": "v1", "kind": "Pod", **template, "metadata": {"name": "it", "namespace": "strict"}})
    for name, pod in sample_pods().items():
        # The default account is created some time after the namespace.
        spec = {**pod, "serviceAccountName": "dreambooth-operator"}
        plane.apply(
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": "strict"}, "spec": spec}
        )


def sample_pods() -> dict[str, Any]:
    """The specs of the pods in samples that the operator does not create."""
    network, benchmark = (
        yaml.safe_load((ROOT / "manifests" / "samples" / f"{name}.yaml").read_text())["spec"]
        for name in ("hypernetwork", "benchmark")
    )
    cluster = benchmark["rayClusterSpec"]
    (workers,) = cluster["workerGroupSpecs"]
    groups = {"network": network, "head": cluster["headGroupSpec"], "worker": workers}
    return {name: group["template"]["spec"] for name, group in groups.items()}


@pytest.mark.parametrize("action", FORBIDDEN)
def test_operator_account_lacks_permission(rbac: ControlPlane, action: str) -> None:
    verb, _, what = action.partition(" ")
    resource, _, part = what.partition("/")
    with pytest.raises(ProcessError, match="can-i"):
        rbac.kubectl(
            "auth", "can-i", verb, resource, f"--subresource={part}", f"--as={ACCOUNT}", "-n", "default", "--quiet"
        )


def test_every_sample_is_valid_and_within_the_bounds_of_its_runtime(plane: ControlPlane) -> None:
    plane.install_crds(ROOT / "manifests" / "crd", kuberay_crds())
    samples = sorted((ROOT / "manifests" / "samples").glob("*.yaml"))
    assert len(samples) >= 6
    for path in samples:
        plane.kubectl("create", "-f", str(path))
    runtimes = {item["metadata"]["name"]: read_runtime(item) for item in plane.get("dbr")["items"]}
    for item in plane.get("dbj")["items"]:
        job = read_job(item)
        assert job.spec
        found = resolve(job, runtimes.get(choose_runtime(job.spec)), list(runtimes))
        assert isinstance(found, ResolvedJob), f"{job.key.name}: {found}"
