"""Commands that change jobs: suspend, resume and delete."""

from __future__ import annotations

import asyncio
import sys

import click

from dreambooth_operator.kubectl_plugin.connect import Cluster, run
from dreambooth_operator.kubectl_plugin.options import connection_options, job_argument, jobs_argument
from dreambooth_operator.kubectl_plugin.polling import POLL_SECONDS, get_again
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Key, part
from dreambooth_operator.resources import JOBS, QUALIFIED_KIND


@click.command()
@job_argument
@connection_options
def suspend(name: str) -> None:
    """Suspend a job at its last checkpoint and delete its pods."""
    namespace = _set_suspend(name, to=True)
    click.echo(f"{name} is being suspended; to resume it, run kubectl dreambooth resume {name} -n {namespace}")


@click.command()
@job_argument
@connection_options
def resume(name: str) -> None:
    """Resume a suspended job from its last checkpoint."""
    namespace = _set_suspend(name, to=False)
    click.echo(f"{name} is resumed; to watch it, run kubectl dreambooth status {name} -n {namespace} --watch")


@click.command()
@jobs_argument
@click.option("--wait", is_flag=True, help="Wait until the jobs are gone, and their data with deletionPolicy Delete.")
@connection_options
def delete(names: tuple[str, ...], wait: bool) -> None:
    """Delete jobs. Their data are deleted too if `spec.output.deletionPolicy` is Delete."""

    async def remove(cluster: Cluster) -> int:
        removed: list[tuple[Key, str]] = []
        for name in names:
            key = Key(cluster.namespace, name)
            try:
                uid = await delete_job(cluster, name)
            except ApiError as error:
                if not error.is_not_found:
                    raise
                click.echo(f"Error: job {name} does not exist in {cluster.namespace} namespace", err=True)
                continue
            except click.ClickException as error:
                click.echo(f"Error: {error.message}", err=True)
                continue
            click.echo(f'{QUALIFIED_KIND} "{name}" deleted from {cluster.namespace} namespace')
            removed.append((key, uid))
        for key, uid in removed if wait else ():
            await _until_gone(cluster, key, uid)
        return len(names) - len(removed)

    if run(remove):
        sys.exit(1)


async def delete_job(cluster: Cluster, name: str) -> str:
    """Delete a job; returns its uid.

    Raises:
        ApiError: the job does not exist, or another error.
        click.ClickException: another client has already deleted it.
    """
    key = Key(cluster.namespace, name)
    uid: str = part(await cluster.api.get(JOBS, key), "metadata").get("uid", "")
    if not await cluster.api.delete(JOBS, key, uid=uid):
        rule = "was already deleted by another client; a job that has this name now is a different job"
        raise click.ClickException(f"job {name} {rule}")
    return uid


async def _until_gone(cluster: Cluster, key: Key, uid: str) -> None:
    """Wait until the job of that uid is gone. A job that was created again under its name is another one."""
    try:
        while part(await get_again(cluster.api, key), "metadata").get("uid") == uid:
            await asyncio.sleep(POLL_SECONDS)
    except ApiError as error:
        if not error.is_not_found:
            raise


def _set_suspend(name: str, *, to: bool) -> str:
    async def patch(cluster: Cluster) -> str:
        await set_suspend(cluster, name, to=to)
        return cluster.namespace

    return run(patch)


async def set_suspend(cluster: Cluster, name: str, *, to: bool) -> None:
    """Suspend or resume a job.

    Raises:
        ApiError: the job does not exist, or another error.
    """
    await cluster.api.merge(JOBS, Key(cluster.namespace, name), {"spec": {"runPolicy": {"suspend": to}}})
