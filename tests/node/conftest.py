"""One cluster with a real node for the session: KubeRay, and the operator in pods, from its chart."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from devcluster import NodeCluster, helm, kuberay_crds, missing
from devcluster.node import OPERATOR_IMAGE, TRAINER_IMAGE

ROOT = Path(__file__).resolve().parents[2]
CHART = ROOT / "charts" / "dreambooth-operator"
SAMPLES = ROOT / "manifests" / "samples"
SYSTEM = "dreambooth-system"


@pytest.fixture(scope="session")
def cluster() -> Iterator[NodeCluster]:
    """The cluster. Where this machine cannot run a node the tests are skipped, but never in CI."""
    lack = missing()
    if lack and not os.environ.get("CI"):
        pytest.skip(lack)
    with NodeCluster() as cluster:
        cluster.install_crds(kuberay_crds())
        cluster.start_kuberay()
        install_operator(cluster)
        yield cluster


def install_operator(cluster: NodeCluster) -> None:
    """As a platform team would, in a namespace under the restricted profile; returns when it is ready."""
    repository, _, tag = OPERATOR_IMAGE.partition(":")
    values = [f"image.repository={repository}", f"image.tag={tag}", "image.pullPolicy=Never", "retrySeconds=1"]
    add_namespace(cluster, SYSTEM)
    settings = [part for value in values for part in ("--set", value)]
    helm(cluster, "install", "dreambooth-operator", str(CHART), "-n", SYSTEM, *settings, "--wait", "--timeout=3m")


def add_namespace(cluster: NodeCluster, name: str) -> None:
    """A namespace under the restricted profile."""
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    cluster.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})


def sample(name: str, **metadata: str) -> dict[str, Any]:
    """The only object of a file in manifests/samples."""
    obj = yaml.safe_load((SAMPLES / name).read_text())
    obj["metadata"] |= metadata
    return obj


def sprites_runtime(**storage: str) -> dict[str, Any]:
    """The sample runtime, with the image that the node has."""
    runtime = sample("runtime-sprites.yaml")
    spec = runtime["spec"]
    spec |= {"image": TRAINER_IMAGE, "imagePullPolicy": "Never", "allowedNamespaces": []}
    spec["storage"] |= storage
    return runtime


def until(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `holds`; fail with `what` after so many seconds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)
