"""Kubernetes resources, keys of objects, and access to untyped objects."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from sys import intern
from typing import Any, NamedTuple
from urllib.parse import quote

_INVALID_SEGMENT = re.compile(r"[/%\x00-\x1f\x7f]")
# An object as the API server sends it. Its structure is not validated, so readers must not rely on it.
Json = dict[str, Any]


class Key(NamedTuple):
    """Namespace and name of an object. `namespace` is empty for cluster-scoped objects."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name}" if self.namespace else self.name


def key_of(obj: Mapping[str, Any]) -> Key:
    """The key of an object that the API server sent. Keys of many objects share their strings, in caches."""
    metadata = obj["metadata"]
    return Key(intern(metadata.get("namespace", "")), intern(metadata["name"]))


def part(obj: Mapping[str, Any], *path: str) -> Json:
    """The object at `path` in `obj`; an empty object if any part of the path is missing or null."""
    node: Any = obj
    for name in path:
        node = node.get(name) or {}
    return node


def parts(obj: Mapping[str, Any], name: str) -> list[Json]:
    """The list of objects in field `name`; empty if the field is missing or null."""
    return obj.get(name) or []


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource of the API, for example `Resource("batch", "v1", "jobs", "Job")`. The core group is empty."""

    group: str
    version: str
    plural: str
    kind: str

    @property
    def api_version(self) -> str:
        """The apiVersion of its objects."""
        return f"{self.group}/{self.version}" if self.group else self.version

    def path(self, namespace: str = "", name: str = "", subresource: str = "") -> str:
        """The URL path of an object, or of the collection if `name` is empty.

        Raises:
            ValueError: an argument is not a valid path segment by the rules of Kubernetes.
        """
        root = ("/apis", self.group, self.version) if self.group else ("/api", self.version)
        scope = ("namespaces", namespace) if namespace else ()
        return "/".join([root[0], *map(_segment, filter(None, (*root[1:], *scope, self.plural, name, subresource)))])


def _segment(text: str) -> str:
    if text in (".", "..") or _INVALID_SEGMENT.search(text):
        rule = "must not be . or .. and must not contain /, % or control characters"
        raise ValueError(f"{text!r} is not a valid URL path segment: it {rule}; use the name of an object")
    return quote(text, safe="")


CONFIG_MAPS = Resource("", "v1", "configmaps", "ConfigMap")
SECRETS = Resource("", "v1", "secrets", "Secret")
SERVICE_ACCOUNTS = Resource("", "v1", "serviceaccounts", "ServiceAccount")
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")
EVENTS = Resource("", "v1", "events", "Event")
TOKEN_REVIEWS = Resource("authentication.k8s.io", "v1", "tokenreviews", "TokenReview")
NETWORK_POLICIES = Resource("networking.k8s.io", "v1", "networkpolicies", "NetworkPolicy")
PODS = Resource("", "v1", "pods", "Pod")
