"""Commands that show a job: status, logs, events, images."""

from __future__ import annotations

import asyncio
import sys
from datetime import UTC, datetime
from pathlib import Path

import click
from rich.console import Console
from rich.live import Live

from dreambooth_api.layout import VALIDATION
from dreambooth_api.status import Phase
from dreambooth_operator.kubectl_plugin.connect import Cluster, run
from dreambooth_operator.kubectl_plugin.fetch import fetch
from dreambooth_operator.kubectl_plugin.follow import follow as copy_as_they_come
from dreambooth_operator.kubectl_plugin.follow import thumbnail
from dreambooth_operator.kubectl_plugin.logs import find_log, stream
from dreambooth_operator.kubectl_plugin.options import connection_options, job_argument
from dreambooth_operator.kubectl_plugin.polling import POLL_SECONDS, get_again
from dreambooth_operator.kubectl_plugin.render import event_rows, is_finished, render
from dreambooth_operator.machinery.resources import EVENTS, Json, Key, key_of, part, parts
from dreambooth_operator.resources import JOBS


@click.command()
@job_argument
@click.option("--watch", "-w", is_flag=True, help="Watch until the job finishes.")
@connection_options
def status(name: str, watch: bool) -> None:
    """Show a job's phase, progress, conditions and scores."""

    async def show(cluster: Cluster) -> None:
        job = await cluster.api.get(JOBS, Key(cluster.namespace, name))
        if watch:
            await watch_job(cluster, job)
        else:
            Console().print(render(job, _now()))

    run(show)


async def watch_job(cluster: Cluster, job: Json, *, until_rejected: bool = False) -> Json:
    """Show a job's status until it has finished, and return the job.

    Args:
        until_rejected: end also when the job is rejected. It would start once the cause is fixed.
    """
    with Live(render(job, _now()), console=Console()) as live:
        while not (is_finished(job) or (until_rejected and part(job, "status").get("phase") == Phase.REJECTED)):
            await asyncio.sleep(POLL_SECONDS)
            job = await get_again(cluster.api, key_of(job))
            live.update(render(job, _now()))
    return job


@click.command()
@job_argument
@click.option("--tail", default=200, show_default=True, help="Number of lines from the end; all with -1.")
@click.option("--follow", "-f", is_flag=True, help="Stream new output.")
@connection_options
def logs(name: str, tail: int, follow: bool) -> None:
    """Print the output of a job's trainer. Once its pods are gone, print the log beside the job's output."""

    found = run(lambda cluster: find_log(cluster, name, tail, follow=follow))
    if isinstance(found, str):
        click.echo(found, nl=False)
        return
    sys.exit(stream(found))


@click.command()
@job_argument
@connection_options
def events(name: str) -> None:
    """List the events of a job."""

    async def show(cluster: Cluster) -> None:
        if found := await list_events(cluster, name):
            Console().print(event_rows(found, _now()))
        else:
            click.echo(f"No events found for {name} in {cluster.namespace} namespace.", err=True)

    run(show)


async def list_events(cluster: Cluster, name: str) -> list[Json]:
    """The events of a job. `name` must be a valid name."""
    selector = f"involvedObject.name={name},involvedObject.kind={JOBS.kind}"
    found = await cluster.api.request("GET", EVENTS.path(cluster.namespace), query={"fieldSelector": selector})
    return parts(found, "items")


@click.command()
@job_argument
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Destination folder. Defaults to the job's name."
)
@click.option(
    "--follow",
    "-f",
    is_flag=True,
    help="Copy images of training.validation as they are generated, until the job finishes.",
)
@connection_options
def images(name: str, out: Path | None, follow: bool) -> None:
    """Fetch the images and the report of a published job."""

    async def copy(cluster: Cluster) -> list[Path]:
        key, folder = Key(cluster.namespace, name), out or Path(name)
        if follow:
            await copy_as_they_come(cluster.api, key, folder, cluster.kubectl, _show_image, _show_state)
            return []
        return await fetch(cluster.api, key, folder, list(cluster.kubectl))

    for path in run(copy):
        click.echo(path)


def _show_image(path: Path) -> None:
    click.echo(path)
    if path.parent.parent.name == VALIDATION and (drawn := thumbnail(path)):
        click.echo(drawn)


def _show_state(state: str) -> None:
    click.echo(state, err=True)


def _now() -> datetime:
    return datetime.now(UTC)
