"""Command line of the plugin. It is installed as `kubectl-dreambooth`, so that kubectl runs it as a plugin."""

from __future__ import annotations

import asyncio
import re
import sys
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

import click
from rich.console import Console
from rich.live import Live

from dreambooth_api.fields import DNS_LABEL
from dreambooth_operator.kubectl_plugin.fetch import fetch
from dreambooth_operator.kubectl_plugin.logs import running_head, stored_log, stream
from dreambooth_operator.kubectl_plugin.render import event_rows, is_finished, render
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import EVENTS, Json, Key
from dreambooth_operator.resources import JOBS

T = TypeVar("T")
Command = Callable[..., Any]


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="dreambooth-operator", prog_name="kubectl-dreambooth")
def cli() -> None:
    """Inspect and control DreamBoothJobs."""


def _label(_context: click.Context, _parameter: click.Parameter, value: str) -> str:
    """Validate the name of a job or namespace. An invalid name could be read as another path or selector."""
    if not re.fullmatch(DNS_LABEL, value):
        rule = "is not a Kubernetes name: at most 63 lowercase letters, digits and hyphens"
        raise click.BadParameter(f"{value!r} {rule}; for example my-dog")
    return value


def _job_options(command: Command) -> Command:
    """Arguments and options of all commands."""
    for decorate in (
        click.argument("name", callback=_label),
        click.option(
            "--namespace", "-n", default="default", show_default=True, callback=_label, help="Namespace of the job."
        ),
        click.option(
            "--kubeconfig",
            type=click.Path(exists=True),
            help="Path of the kubeconfig file. Defaults to the file that kubectl uses.",
        ),
        click.option("--context", help="Name of the kubeconfig context."),
    ):
        command = decorate(command)
    return command


@cli.command()
@_job_options
@click.option("--watch", "-w", is_flag=True, help="Watch until the job finishes.")
def status(name: str, namespace: str, kubeconfig: str | None, context: str | None, watch: bool) -> None:
    """Show a job's phase, progress, conditions and scores."""

    async def show(api: Api) -> None:
        job = await api.get(JOBS, Key(namespace, name))
        if not watch:
            Console().print(render(job, _now()))
            return
        with Live(render(job, _now()), console=Console()) as live:
            while not is_finished(job):
                await asyncio.sleep(1)
                job = await api.get(JOBS, Key(namespace, name))
                live.update(render(job, _now()))

    _run(kubeconfig, context, show)


@cli.command()
@_job_options
@click.option("--tail", default=200, show_default=True, help="Number of lines from the end.")
@click.option("--follow", "-f", is_flag=True, help="Stream new output.")
def logs(name: str, namespace: str, kubeconfig: str | None, context: str | None, tail: int, follow: bool) -> None:
    """Print the output of a job's trainer. Once its pods are gone, print the log beside the job's output."""
    key, kubectl = Key(namespace, name), _kubectl(kubeconfig, context)

    async def find(api: Api) -> tuple[str, str] | str:
        return await running_head(api, key) or await stored_log(api, key, tail, kubectl)

    found = _run(kubeconfig, context, find)
    if isinstance(found, str):
        click.echo(found, nl=False)
        return
    pod, file = found
    command = ["exec", "-n", namespace, pod, "-c", "ray-head", "--", "tail", "-n", str(tail), *["-f"] * follow, file]
    sys.exit(stream([*kubectl, *command]))


@cli.command()
@_job_options
def events(name: str, namespace: str, kubeconfig: str | None, context: str | None) -> None:
    """List the events of a job."""

    async def show(api: Api) -> None:
        selector = f"involvedObject.name={name},involvedObject.kind={JOBS.kind}"
        found = await api.request("GET", EVENTS.path(namespace), query={"fieldSelector": selector})
        Console().print(event_rows(found["items"], _now()))

    _run(kubeconfig, context, show)


@cli.command()
@_job_options
@click.option("--out", type=click.Path(path_type=Path), help="Destination folder. Defaults to the job's name.")
def images(name: str, namespace: str, kubeconfig: str | None, context: str | None, out: Path | None) -> None:
    """Fetch the images and the report of a published job."""

    async def copy(api: Api) -> list[Path]:
        return await fetch(api, Key(namespace, name), out or Path(name), _kubectl(kubeconfig, context))

    for path in _run(kubeconfig, context, copy):
        click.echo(path)


@cli.command()
@_job_options
def suspend(name: str, namespace: str, kubeconfig: str | None, context: str | None) -> None:
    """Suspend a job at its last checkpoint and delete its pods."""
    _run(kubeconfig, context, lambda api: _set_suspend(api, Key(namespace, name), to=True))
    click.echo(f"{name} is being suspended; to resume it, run kubectl dreambooth resume {name} -n {namespace}")


@cli.command()
@_job_options
def resume(name: str, namespace: str, kubeconfig: str | None, context: str | None) -> None:
    """Resume a suspended job from its last checkpoint."""
    _run(kubeconfig, context, lambda api: _set_suspend(api, Key(namespace, name), to=False))
    click.echo(f"{name} is resumed; to watch it, run kubectl dreambooth status {name} -n {namespace} --watch")


async def _set_suspend(api: Api, key: Key, *, to: bool) -> Json:
    return await api.merge(JOBS, key, {"spec": {"runPolicy": {"suspend": to}}})


def _kubectl(kubeconfig: str | None, context: str | None) -> list[str]:
    """The kubectl command for the same cluster."""
    return [
        "kubectl",
        *([f"--kubeconfig={kubeconfig}"] * bool(kubeconfig)),
        *([f"--context={context}"] * bool(context)),
    ]


def _run(kubeconfig: str | None, context: str | None, body: Callable[[Api], Coroutine[Any, Any, T]]) -> T:
    """Run `body` with a connection. Errors of the API server are printed as one line."""

    async def connected() -> T:
        async with await Api.connect(kubeconfig, context) as api:
            return await body(api)

    try:
        return asyncio.run(connected())
    except ApiError as error:
        raise click.ClickException(error.message) from error
    except CONNECTION_ERRORS as error:
        path = kubeconfig or Path("~/.kube/config")
        raise click.ClickException(f"the API server configured in {path} does not respond: {error}") from error


def _now() -> datetime:
    return datetime.now(UTC)
