"""Candidates for shell completion that depend on the cluster. Without a connection there are none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

import click

from dreambooth_operator.kubectl_plugin.connect import Cluster, run, selection
from dreambooth_operator.kubectl_plugin.objects import LOCAL_RUNTIME
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.kubeconfig import KubeconfigError, read_kubeconfig
from dreambooth_operator.machinery.resources import Resource, key_of
from dreambooth_operator.resources import JOBS, LOCAL_RUNTIMES, RUNTIMES

_SECONDS = 3
_NAMESPACES = Resource("", "v1", "namespaces", "Namespace")


def complete_jobs(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of jobs in the selected namespace."""
    return _named(context, incomplete, lambda cluster: _names(cluster, JOBS, cluster.namespace))


def complete_namespaces(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of namespaces."""
    return _named(context, incomplete, lambda cluster: _names(cluster, _NAMESPACES))


def complete_runtimes(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of runtimes of both kinds."""

    async def find(cluster: Cluster) -> list[str]:
        names = await _names(cluster, RUNTIMES)
        try:
            local = await _names(cluster, LOCAL_RUNTIMES, cluster.namespace)
        except ApiError:  # the user may not read them
            return names
        return names + [f"{LOCAL_RUNTIME}/{name}" for name in local]

    return _named(context, incomplete, find)


def complete_contexts(context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    """Names of contexts of the kubeconfig."""
    try:
        contexts = read_kubeconfig(selection(context).get("kubeconfig")).contexts
    except KubeconfigError:
        return []
    return [name for name in contexts if name.startswith(incomplete)]


def _named(
    context: click.Context, incomplete: str, find: Callable[[Cluster], Coroutine[Any, Any, list[str]]]
) -> list[str]:
    try:
        with context.scope(cleanup=False):
            return [name for name in run(find) if name.startswith(incomplete)]
    except click.ClickException:  # a shell must not print errors into the line that is being typed
        return []


async def _names(cluster: Cluster, resource: Resource, namespace: str = "") -> list[str]:
    async with asyncio.timeout(_SECONDS):
        found = await cluster.api.request("GET", resource.path(namespace))
    return [key_of(obj).name for obj in found["items"]]
