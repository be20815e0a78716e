"""NetworkPolicies of a job's pods, evaluated as a network plugin does."""

from __future__ import annotations

from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from simulation import SETTINGS, job_with

from dreambooth_api.runtime import RuntimeSpec
from dreambooth_operator.app import _options
from dreambooth_operator.controller.children.attempt import attempt_children
from dreambooth_operator.controller.children.erase_job import erase_children
from dreambooth_operator.controller.observed import Runtime, read_runtime
from dreambooth_operator.controller.ownership import name_conflict
from dreambooth_operator.controller.resolve import ResolvedJob, resolve
from dreambooth_operator.controller.settings import Settings
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, Json

METADATA = ("169.254.169.254", "169.254.170.23", "fd00:ec2::254", "fd20:ce::254", "fe80::1")
HUB = "3.5.140.2"
PODS = {
    "own": ("team", {"dreambooth.dev/job": "dog", "dreambooth.dev/attempt": "1"}),
    "other": ("team", {"dreambooth.dev/job": "cat", "dreambooth.dev/attempt": "1"}),
    "tenant": ("elsewhere", {"dreambooth.dev/job": "dog", "dreambooth.dev/attempt": "1"}),
    "operator": ("dreambooth-system", {"app.kubernetes.io/name": "dreambooth-operator"}),
    "fake operator": ("elsewhere", {"app.kubernetes.io/name": "dreambooth-operator"}),
    "kuberay by Helm": ("ray", {"app.kubernetes.io/name": "kuberay-operator"}),
    "kuberay by kustomize": ("ray", {"app.kubernetes.io/name": "kuberay"}),
    "prometheus": ("monitoring", {"app.kubernetes.io/name": "prometheus", "pod": "0"}),
    "minio": ("storage", {"app": "minio"}),
}


def children(network: Json | None = None, *, elastic: bool = False, settings: Settings = SETTINGS) -> list[Json]:
    cluster = {"elastic": {"minWorkers": 1, "maxWorkers": 2}} if elastic else {}
    job = job_with({"cluster": cluster})
    fields = {"image": "trainer:1", "storage": {"claimName": "work"}, "network": network or {}}
    found = resolve(job, Runtime("default", RuntimeSpec.model_validate(fields)), [])
    assert isinstance(found, ResolvedJob)
    made = [obj for _, obj in [*attempt_children(job, 1, found, settings), *erase_children(job, found)]]
    return [obj for obj in made if obj["kind"] == "NetworkPolicy"]


def policy(network: Json | None = None, **options: Any) -> Json:
    return children(network, **options)[0]["spec"]


def selects(selector: Json, labels: dict[str, str]) -> bool:
    return selector.get("matchLabels", {}).items() <= labels.items()


def matches(peer: Json, target: str) -> bool:
    """Whether a peer of a rule is the pod or address `target`."""
    if target not in PODS:
        block = peer.get("ipBlock")
        if not block or ip_address(target) not in ip_network(block["cidr"]):
            return False
        return not any(ip_address(target) in ip_network(each) for each in block.get("except", ()))
    namespace, labels = PODS[target]
    if "ipBlock" in peer:
        return False
    namespaces = peer.get("namespaceSelector", {"matchLabels": {"kubernetes.io/metadata.name": "team"}})
    return selects(namespaces, {"kubernetes.io/metadata.name": namespace}) and selects(
        peer.get("podSelector", {}), labels
    )


def reaches(spec: Json, target: str, port: int, direction: str = "egress", protocol: str = "TCP") -> bool:
    peers = {"egress": "to", "ingress": "from"}[direction]
    return any(
        (peers not in rule or any(matches(peer, target) for peer in rule[peers]))
        and ("ports" not in rule or {"port": port, "protocol": protocol} in rule["ports"])
        for rule in spec.get(direction, ())
    )


def test_egress_is_denied_by_default() -> None:
    spec = policy()
    assert spec["policyTypes"] == ["Ingress", "Egress"]
    assert reaches(spec, "own", 6379)
    assert reaches(spec, "operator", 8082)
    assert reaches(spec, HUB, 53, protocol="UDP"), "DNS"
    for target, port in [("other", 6379), ("tenant", 6379), ("fake operator", 8082), ("operator", 8081), (HUB, 443)]:
        assert not reaches(spec, target, port), target
    assert not any(reaches(spec, address, port) for address in METADATA for port in (80, 443))


def test_runtime_allows_addresses_and_namespaces() -> None:
    rules = [{"cidrs": ["0.0.0.0/0", "::/0"], "ports": [443]}, {"namespaces": ["storage"], "ports": [9000]}]
    for spec in (each["spec"] for each in children({"egress": rules})):  # also the pod that erases
        assert reaches(spec, HUB, 443)
        assert reaches(spec, "2606:4700::1", 443)
        assert reaches(spec, "minio", 9000)
        assert not reaches(spec, HUB, 80)
        assert not reaches(spec, "minio", 443)
        assert not reaches(spec, "tenant", 9000)
        assert not any(reaches(spec, address, 443) for address in METADATA)


@pytest.mark.parametrize("cidr", ["169.254.0.0/16", "169.254.169.254/32", "fe80::/64", "fd00:ec2::254/128"])
def test_link_local_addresses_need_cloud_metadata(cidr: str) -> None:
    address = str(ip_network(cidr)[-1])
    closed, opened = policy({"egress": [{"cidrs": [cidr]}]}), policy({"cloudMetadata": True})
    assert not reaches(closed, address, 80)
    assert not reaches(closed, HUB, 80), "a rule without destinations allows nothing"
    assert reaches(opened, address, 80)
    assert all(reaches(opened, each, 80) for each in METADATA)
    assert not reaches(opened, HUB, 80)


def test_only_elastic_jobs_reach_the_api_server() -> None:
    assert reaches(policy(elastic=True), "10.96.0.1", 443)
    assert not reaches(policy(), "10.96.0.1", 443)
    assert not any(reaches(policy(elastic=True), address, 443) for address in METADATA)


def test_ingress_is_from_the_attempt_kuberay_and_prometheus() -> None:
    spec = policy()
    assert reaches(spec, "own", 6379, "ingress")
    for pod in ("kuberay by Helm", "kuberay by kustomize"):
        assert reaches(spec, pod, 8265, "ingress")
        assert not reaches(spec, pod, 6379, "ingress")
    assert reaches(spec, "prometheus", 8080, "ingress")
    for pod in ("other", "tenant", "minio", "operator", "prometheus"):
        assert not reaches(spec, pod, 8265, "ingress"), pod


def test_options_select_kuberay_and_prometheus() -> None:
    given = ["--kuberay-namespace=ray", "--prometheus-namespace=other", "--prometheus-pod-labels=app=vm,tier=a"]
    settings = _options([*given, "--namespace=ops"]).settings
    assert settings.operator_namespace == "ops"
    spec = policy(settings=settings)
    for pod in ("kuberay by Helm", "kuberay by kustomize"):
        assert reaches(spec, pod, 8265, "ingress")
    assert not reaches(spec, "prometheus", 8080, "ingress")
    elsewhere = policy(settings=_options(["--kuberay-namespace=other"]).settings)
    assert not reaches(elsewhere, "kuberay by Helm", 8265, "ingress")
    labeled = policy(settings=_options(["--kuberay-pod-labels=app.kubernetes.io/name=kuberay"]).settings)
    assert reaches(labeled, "kuberay by kustomize", 8265, "ingress")
    assert not reaches(labeled, "kuberay by Helm", 8265, "ingress")


def test_each_attempt_has_its_own_policy_and_erasing_another() -> None:
    attempt, erase = children()
    assert attempt["metadata"]["name"].endswith("-1")
    assert attempt["spec"]["podSelector"] == {"matchLabels": PODS["own"][1]}
    assert {"key": "dreambooth.dev/attempt", "operator": "DoesNotExist"} in erase["spec"]["podSelector"][
        "matchExpressions"
    ]
    assert not any(reaches(erase["spec"], pod, 8265, "ingress") for pod in PODS)


def test_invalid_address_range_is_explained() -> None:
    spec = {"image": "trainer:1", "network": {"egress": [{"cidrs": ["10.0.0.1/8"]}]}}
    problems = read_runtime({"metadata": {"name": "default", "uid": "u"}, "spec": spec}).problems
    assert len(problems) == 1
    assert "network.egress[0].cidrs[0]" in problems[0]
    assert "write it like 10.1.0.0/16" in problems[0]


ALLOWED: list[Json] = [
    {},
    {"egress": [{"cidrs": ["0.0.0.0/0", "::/0"], "ports": [443]}, {"namespaces": ["storage"]}]},
    {"cloudMetadata": True},
]


@pytest.mark.parametrize("elastic", [False, True])
@pytest.mark.parametrize("network", ALLOWED)
async def test_api_server_accepts_the_policies_unchanged(
    api: Api, namespace: str, network: Json, elastic: bool
) -> None:
    for wanted in children(network, elastic=elastic):
        wanted["metadata"]["namespace"] = namespace
        assert name_conflict(NETWORK_POLICIES, wanted, await api.create(NETWORK_POLICIES, wanted)) is None
