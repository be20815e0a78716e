"""DreamBooth on a `NodeCluster`, as a platform team installs it: KubeRay, the operator's chart and a runtime."""

from pathlib import Path
from typing import Any

import yaml

from devcluster.node import OPERATOR_IMAGE, TRAINER_IMAGE, NodeCluster
from devcluster.plane import helm, kuberay_crds

ROOT = Path(__file__).resolve().parents[3]
SYSTEM = "dreambooth-system"
_CHART = ROOT / "charts" / "dreambooth-operator"


def install_dreambooth(cluster: NodeCluster) -> None:
    """Install KubeRay and the operator. Returns when its pods are ready. The retry delay is one second."""
    cluster.install_crds(kuberay_crds())
    cluster.start_kuberay()
    repository, _, tag = OPERATOR_IMAGE.partition(":")
    values = [f"image.repository={repository}", f"image.tag={tag}", "image.pullPolicy=Never", "retrySeconds=1"]
    add_namespace(cluster, SYSTEM)
    settings = [part for value in values for part in ("--set", value)]
    helm(cluster, "install", "dreambooth-operator", str(_CHART), "-n", SYSTEM, *settings, "--wait", "--timeout=3m")


def add_namespace(cluster: NodeCluster, name: str) -> None:
    """Create a namespace that enforces the restricted Pod Security Standard."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def sample(file: str, **metadata: str) -> dict[str, Any]:
    """The object in a file of manifests/samples."""
    obj = yaml.safe_load((ROOT / "manifests" / "samples" / file).read_text())
    obj["metadata"] |= metadata
    return obj


def sprites_runtime(name: str = "sprites", **storage: str) -> dict[str, Any]:
    """The sample runtime with the node's trainer image, for all namespaces."""
    runtime = sample("runtime-sprites.yaml", name=name)
    spec = runtime["spec"]
    spec |= {"image": TRAINER_IMAGE, "imagePullPolicy": "Never", "allowedNamespaces": []}
    spec["storage"] |= storage
    spec["bounds"] = {"priorityClassNames": ["low", "high"]}
    return runtime
