"""Commands that change a job: suspend and resume."""

from __future__ import annotations

import click

from dreambooth_operator.kubectl_plugin.connect import Cluster, connection_options, label, run
from dreambooth_operator.machinery.resources import Key
from dreambooth_operator.resources import JOBS


@click.command()
@click.argument("name", callback=label)
@connection_options
def suspend(name: str) -> None:
    """Suspend a job at its last checkpoint and delete its pods."""
    namespace = _set_suspend(name, to=True)
    click.echo(f"{name} is being suspended; to resume it, run kubectl dreambooth resume {name} -n {namespace}")


@click.command()
@click.argument("name", callback=label)
@connection_options
def resume(name: str) -> None:
    """Resume a suspended job from its last checkpoint."""
    namespace = _set_suspend(name, to=False)
    click.echo(f"{name} is resumed; to watch it, run kubectl dreambooth status {name} -n {namespace} --watch")


def _set_suspend(name: str, *, to: bool) -> str:
    async def patch(cluster: Cluster) -> str:
        await cluster.api.merge(JOBS, Key(cluster.namespace, name), {"spec": {"runPolicy": {"suspend": to}}})
        return cluster.namespace

    return run(patch)
