"""NetworkPolicies of a job's pods. Everything that is not listed is denied."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network

from dreambooth_api.network import LINK_LOCAL, EgressRule, Network
from dreambooth_operator.controller.children.metadata import child_metadata
from dreambooth_operator.controller.names import attempt_name, erase_name
from dreambooth_operator.controller.observed import Job
from dreambooth_operator.controller.resolve import ResolvedJob
from dreambooth_operator.controller.settings import PodSelector, Settings
from dreambooth_operator.machinery.resources import NETWORK_POLICIES, Json
from dreambooth_operator.resources import ATTEMPT_LABEL, JOB_LABEL

_DASHBOARD_PORT = 8265
_METRICS_PORT = 8080
_PROGRESS_PORT = 8082
# 5353: OpenShift's DNS pods. To any address, because node-local and cloud DNS servers have link-local ones.
_DNS = {"ports": [{"port": port, "protocol": protocol} for port in (53, 5353) for protocol in ("UDP", "TCP")]}
# Behind the Service, the API server has an address that the operator does not know.
_API_SERVER_PORTS = (443, 6443)
_ANYWHERE = ("0.0.0.0/0", "::/0")


def build_attempt_policy(job: Job, attempt: int, resolved: ResolvedJob, settings: Settings) -> Json:
    """The policy of the pods of one attempt.

    Each attempt has its own, because the runtime may change between attempts, and policies of the same pods add up.
    """
    same_attempt = {"matchLabels": {JOB_LABEL: job.key.name, ATTEMPT_LABEL: str(attempt)}}
    operator = PodSelector(settings.operator_namespace, {"app.kubernetes.io/name": "dreambooth-operator"})
    kuberay = [_peer(selector) for selector in settings.kuberay]
    egress = [{"to": [{"podSelector": same_attempt}]}, {"to": [_peer(operator)], "ports": _tcp(_PROGRESS_PORT)}]
    if resolved.spec.cluster.elastic:
        api_server = [{"ipBlock": block} for cidr in _ANYWHERE for block in _blocks(cidr, Network())]
        egress.append({"to": api_server, "ports": _tcp(*_API_SERVER_PORTS)})
    ingress = [
        {"from": [{"podSelector": same_attempt}]},
        {"from": kuberay, "ports": _tcp(_DASHBOARD_PORT)},
        {"from": [_peer(settings.prometheus)], "ports": _tcp(_METRICS_PORT)},
    ]
    name = attempt_name(job, attempt)
    return _policy(job, name, same_attempt, ingress, [*egress, *_allowed(resolved.runtime.network)])


def build_erase_policy(job: Job, resolved: ResolvedJob) -> Json:
    """The policy of the pod that deletes a job's data. Nothing needs to reach it."""
    pods = {
        "matchLabels": {JOB_LABEL: job.key.name},
        "matchExpressions": [{"key": ATTEMPT_LABEL, "operator": "DoesNotExist"}],
    }
    return _policy(job, erase_name(job), pods, [], _allowed(resolved.runtime.network))


def _policy(job: Job, name: str, pods: Json, ingress: list[Json], egress: list[Json]) -> Json:
    spec: Json = {"podSelector": pods, "policyTypes": ["Ingress", "Egress"], "egress": [_DNS, *egress]}
    if ingress:  # the API server drops an empty list, and the policy would seem to have other content
        spec["ingress"] = ingress
    return {
        "apiVersion": NETWORK_POLICIES.api_version,
        "kind": NETWORK_POLICIES.kind,
        "metadata": child_metadata(job, name),
        "spec": spec,
    }


def _allowed(network: Network) -> list[Json]:
    """The rules of the runtime. A rule without destinations allows nothing; the API server would allow all."""
    rules = [rule for rule in (_egress_rule(each, network) for each in network.egress) if rule["to"]]
    if network.cloud_metadata:
        rules.append({"to": [{"ipBlock": {"cidr": cidr}} for cidr in LINK_LOCAL]})
    return rules


def _egress_rule(rule: EgressRule, network: Network) -> Json:
    blocks = [{"ipBlock": block} for cidr in rule.cidrs for block in _blocks(cidr, network)]
    namespaces = [{"namespaceSelector": _namespace(name)} for name in rule.namespaces]
    built: Json = {"to": [*blocks, *namespaces]}
    return {**built, "ports": _tcp(*rule.ports)} if rule.ports else built


def _blocks(cidr: str, network: Network) -> list[Json]:
    """`cidr` without link-local addresses; nothing if it has no others."""
    wanted = ip_network(cidr)
    if network.cloud_metadata:
        return [{"cidr": cidr}]
    local = [each for each in map(ip_network, LINK_LOCAL) if each.version == wanted.version]
    if any(_within(wanted, each) for each in local):
        return []
    excluded = [str(each) for each in local if _within(each, wanted)]
    return [{"cidr": cidr, "except": excluded}] if excluded else [{"cidr": cidr}]


def _within(inner: IPv4Network | IPv6Network, outer: IPv4Network | IPv6Network) -> bool:
    return inner.network_address in outer and inner.prefixlen >= outer.prefixlen


def _peer(selector: PodSelector) -> Json:
    namespaces = _namespace(selector.namespace) if selector.namespace else {}
    return {"namespaceSelector": namespaces, "podSelector": {"matchLabels": dict(selector.labels)}}


def _namespace(name: str) -> Json:
    return {"matchLabels": {"kubernetes.io/metadata.name": name}}


def _tcp(*ports: int) -> list[Json]:
    return [{"port": port, "protocol": "TCP"} for port in ports]
