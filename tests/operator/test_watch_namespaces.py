"""An operator whose permissions and watches are limited to some namespaces, installed by the real Helm."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from devcluster import ControlPlane, ProcessError, helm, kuberay_crds
from operatorprocess import SYSTEM, Operator, until

from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.reflector import Reflector
from dreambooth_operator.machinery.resources import CONFIG_MAPS, Key

CHART = Path(__file__).resolve().parents[2] / "charts" / "dreambooth-operator"
ACCOUNT = f"--as=system:serviceaccount:{SYSTEM}:dreambooth-operator"
WATCHED, OTHER = ("team-a", "team-b"), "team-c"


@pytest.fixture(scope="module")
def plane() -> Iterator[ControlPlane]:
    """A separate control plane with the chart, for two namespaces."""
    with ControlPlane() as plane:
        plane.install_crds(kuberay_crds())
        for name in (*WATCHED, OTHER):
            plane.kubectl("create", "namespace", name)
        values = f"watchNamespaces={{{','.join(WATCHED)}}}"
        release = ("dreambooth-operator", str(CHART), "-n", SYSTEM, "--create-namespace", "--set", values)
        helm(plane, "install", *release)
        plane.install_crds()
        plane.start_controllers()
        yield plane


def may(plane: ControlPlane, verb: str, resource: str, *where: str) -> bool:
    try:
        plane.kubectl("auth", "can-i", verb, resource, ACCOUNT, *where, "--quiet")
    except ProcessError:
        return False
    return True


def job(namespace: str, name: str = "dog") -> dict[str, Any]:
    return {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": name, "namespace": namespace},
        "spec": {"subject": {"images": {"uri": "s3://photos/dog"}, "class": "dog"}},
    }


@pytest.mark.parametrize(
    "action",
    ["list dreamboothjobs.dreambooth.dev", "create rayjobs.ray.io", "list pods", "create configmaps", "list events"],
)
def test_permissions_are_limited_to_the_namespaces(plane: ControlPlane, action: str) -> None:
    verb, resource = action.split()
    assert [may(plane, verb, resource, "-n", name) for name in (*WATCHED, OTHER)] == [True, True, False]
    assert not may(plane, verb, resource, "-A")


def test_jobs_of_these_namespaces_only_are_reconciled(plane: ControlPlane) -> None:
    def phase(namespace: str, name: str = "dog") -> str:
        return plane.get("dbj", name, "-n", namespace).get("status", {}).get("phase", "")

    plane.apply(job(OTHER), job("team-a"))
    flag = f"--watch-namespaces={','.join(WATCHED)}"
    operator = Operator(plane, "namespaced", flag).start()
    standby = Operator(plane, "standby", flag)
    try:
        plane.apply(job("team-b"), job("team-b", "cat"), job("team-a", "cat"))
        for namespace in WATCHED:
            for name in ("dog", "cat"):
                until(f"{namespace}/{name} is explained", lambda n=namespace, j=name: phase(n, j) == "Rejected")
        assert phase(OTHER) == "Pending", "the default"
        assert operator.metric("dreambooth_jobs") == 4
        standby.start()
        assert "dreambooth_jobs{" not in standby.get(standby.health, "/metrics"), "only the leader counts jobs"
    finally:
        operator.process.kill()
        standby.process.kill()


async def test_list_of_one_namespace_keeps_the_objects_of_another(plane: ControlPlane) -> None:
    for name in WATCHED:
        plane.kubectl("create", "configmap", "mine", "-n", name)
    gone: list[Key] = []
    async with await Api.connect(str(plane.kubeconfig)) as api:
        first = Reflector(api, CONFIG_MAPS, project=lambda _: 1, on_change=gone.append, namespace=WATCHED[0])
        second = first.also_in(WATCHED[1])
        for _ in range(2):
            await first._list()
            await second._list()
        assert {Key(name, "mine") for name in WATCHED} <= first.cache.keys()
        assert {key.namespace for key in first.cache} == set(WATCHED)
        plane.kubectl("delete", "configmap", "mine", "-n", WATCHED[1])
        await second._list()
    assert Key(WATCHED[0], "mine") in first.cache
    assert Key(WATCHED[1], "mine") not in first.cache
