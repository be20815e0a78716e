"""Fixtures: one control plane per session, one namespace per test."""

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from devcluster import ControlPlane, kuberay_crds
from fakeray import FakeRay, fake_ray
from operatorprocess import RUNTIME, SYSTEM, Operator

from dreambooth_operator.machinery.client import Api

ROOT = Path(__file__).resolve().parents[2]
_numbers = itertools.count(1)


@pytest.fixture(scope="session")
def plane() -> Iterator[ControlPlane]:
    """etcd, API server and garbage collection, with our CRDs and those of KubeRay, but without KubeRay."""
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds(), ROOT / "manifests" / "crd")
        plane.start_controllers()
        plane.kubectl("create", "namespace", SYSTEM)
        plane.kubectl("apply", "-k", str(ROOT / "manifests" / "rbac"))
        yield plane


@pytest.fixture
def namespace(plane: ControlPlane) -> str:
    """A new namespace that enforces the restricted Pod Security Standard.

    It is not deleted, because the control plane ends with the session.
    """
    name = f"test-{next(_numbers)}"
    labels = {"pod-security.kubernetes.io/enforce": "restricted"}
    plane.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": labels}})
    return name


@pytest.fixture
async def api(plane: ControlPlane):
    """A connection with administrator rights."""
    async with await Api.connect(str(plane.kubeconfig)) as api:
        yield api


@pytest.fixture(scope="session")
def ray(plane: ControlPlane) -> Iterator[FakeRay]:
    """The real KubeRay, and a fake kubelet and Ray dashboard."""
    with fake_ray(plane) as ray:
        plane.start_kuberay()
        yield ray


@pytest.fixture(scope="module")
def operator(plane: ControlPlane, ray: FakeRay) -> Iterator[Operator]:
    """An operator for the tests of one module, so that it does not affect the tests of others."""
    plane.apply(RUNTIME)
    operator = Operator(plane, "operator").start()
    yield operator
    operator.process.kill()
