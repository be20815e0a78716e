"""Versions of the plugin and of the operator."""

from __future__ import annotations

import asyncio
from importlib.metadata import version

import click

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster, run
from dreambooth_operator.machinery.resources import Resource, part

_DEPLOYMENTS = Resource("apps", "v1", "deployments", "Deployment")
_OPERATOR = "dreambooth-operator"
_VERSION_LABEL = "app.kubernetes.io/version"
_SECONDS = 5


def print_versions() -> None:
    """Print the version of the plugin and, if Deployments may be read, of each operator in the cluster."""
    click.echo(f"kubectl-dreambooth, version {version(_OPERATOR)}")
    try:
        found = run(_operators)
    except click.ClickException as error:
        click.echo(f"The operator's version is unknown: {error.message}", err=True)
        return
    for line in found:
        click.echo(printable(line))
    if not found:
        click.echo("The operator was not found in the cluster.", err=True)


async def _operators(cluster: Cluster) -> list[str]:
    query = {"labelSelector": f"app.kubernetes.io/name={_OPERATOR}"}
    async with asyncio.timeout(_SECONDS):
        found = await cluster.api.request("GET", _DEPLOYMENTS.path(), query=query)
    metadata = [part(obj, "metadata") for obj in found["items"]]
    return [
        f"{_OPERATOR}, version {part(m, 'labels').get(_VERSION_LABEL, 'unknown')}, in namespace {m.get('namespace')}"
        for m in metadata
    ]
