"""One control plane for the session; a namespace of its own for each test."""

import itertools
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane, kuberay_crds

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """etcd, API server, garbage collection; our CRDs and KubeRay's, but no KubeRay."""
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds(), ROOT / "manifests" / "crd")
        plane.start_controllers()
        os.environ["KUBECONFIG"] = str(plane.kubeconfig)
        yield plane


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    """A fresh namespace. Nobody deletes it: the control plane does not outlive the session."""
    name = f"test-{next(_numbers)}"
    plane.kubectl("create", "namespace", name)
    return name
