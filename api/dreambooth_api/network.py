"""What the pods of a job may reach: `spec.network` of a runtime."""

from __future__ import annotations

import ipaddress
from typing import Annotated

from pydantic import AfterValidator, Field

from dreambooth_api.fields import DNS_LABEL, Strict, rule_error

# Metadata services of clouds hand out credentials of the node: the link-local addresses, and IPv6 of AWS and GCP.
LINK_LOCAL = ("169.254.0.0/16", "fe80::/10", "fd00:ec2::254/128", "fd20:ce::254/128")


def _address_range(text: str) -> str:
    try:
        ipaddress.ip_network(text)
    except ValueError as error:
        raise rule_error("", f"is not an address range: {error}", "write it like 10.1.0.0/16") from error
    return text


AddressRange = Annotated[str, AfterValidator(_address_range)]
Port = Annotated[int, Field(ge=1, le=65535)]


class EgressRule(Strict):
    """Addresses or namespaces, and ports, that the pods of a job may reach."""

    cidrs: list[AddressRange] = Field(
        default_factory=list[str],
        max_length=64,
        description="Address ranges, for example 10.1.0.0/16. 0.0.0.0/0 is every IPv4 address except link-local ones.",
        json_schema_extra={"items": {"type": "string", "pattern": r"^[0-9a-fA-F.:]+/[0-9]{1,3}$", "maxLength": 49}},
    )
    namespaces: list[str] = Field(
        default_factory=list,
        max_length=64,
        description="Namespaces whose pods may be reached.",
        json_schema_extra={"items": {"type": "string", "pattern": DNS_LABEL, "maxLength": 63}},
    )
    ports: list[Port] = Field(
        default_factory=list[int], max_length=64, description="TCP ports. If empty, all ports and protocols."
    )


class Network(Strict):
    """Network access of a job's pods, enforced by NetworkPolicies where the cluster's network supports them."""

    egress: list[EgressRule] = Field(
        default_factory=list[EgressRule],
        max_length=64,
        description="What the pods may reach besides pods of the same job, DNS and the operator: for example the Hub, "
        "an object store, or a registry of models. If empty, nothing else.",
    )
    cloud_metadata: bool = Field(
        default=False,
        description="Whether the pods may reach link-local addresses, where clouds serve metadata and credentials of "
        "the node. Some identities of pods need it.",
    )
