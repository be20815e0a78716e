"""Command that forwards a local port to the Ray dashboard of a job."""

from __future__ import annotations

import base64
import signal
import subprocess
import sys
import webbrowser
from collections.abc import Iterator

import click

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster, missing_program, run
from dreambooth_operator.kubectl_plugin.logs import running_heads
from dreambooth_operator.kubectl_plugin.options import connection_options, job_argument
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Json, Key, Resource, part, parts
from dreambooth_operator.resources import HEAD_CONTAINER, JOBS

_DASHBOARD_PORT = 8265
_SECRETS = Resource("", "v1", "secrets", "Secret")
_TOKEN_VARIABLE = "RAY_AUTH_TOKEN"  # noqa: S105 - the name of a variable


@click.command()
@job_argument
@click.option("--port", type=click.IntRange(1, 65535), default=_DASHBOARD_PORT, show_default=True, help="Local port.")
@click.option("--open", "open_", is_flag=True, help="Open the dashboard in a browser.")
@connection_options
def dashboard(name: str, port: int, open_: bool) -> None:
    """Forward a local port to the Ray dashboard of a running job, and print the token that it asks for."""

    async def find(cluster: Cluster) -> tuple[list[str], str]:
        key = Key(cluster.namespace, name)
        heads = await running_heads(cluster.api, key)
        if not heads:
            phase = part(await cluster.api.get(JOBS, key), "status").get("phase", "Pending")
            raise click.ClickException(f"job {name} has no running head pod; its phase is {phase}")
        pod = heads[-1]
        ports = f"{port}:{_DASHBOARD_PORT}"
        command = [*cluster.kubectl, "port-forward", "-n", key.namespace, f"pod/{pod['metadata']['name']}", ports]
        return command, await _token(cluster, pod)

    command, token = run(find)
    sys.exit(_forward(command, f"http://127.0.0.1:{port}", token, open_=open_))


def token_reference(pod: Json) -> tuple[str, str] | None:
    """Name and key of the Secret with Ray's token, as KubeRay sets it in the head container. Pure."""
    for container in parts(part(pod, "spec"), "containers"):
        for variable in parts(container, "env") if container.get("name") == HEAD_CONTAINER else ():
            reference = part(variable, "valueFrom", "secretKeyRef")
            if variable.get("name") == _TOKEN_VARIABLE and reference:
                return str(reference.get("name", "")), str(reference.get("key", ""))
    return None


async def _token(cluster: Cluster, pod: Json) -> str:
    """A sentence with the token; empty if the cluster has none."""
    reference = token_reference(pod)
    if reference is None:
        return ""
    name, key = reference
    try:
        secret = await cluster.api.get(_SECRETS, Key(cluster.namespace, name))
    except ApiError as error:
        return f"Token: in key {key} of the Secret {name}, which you cannot read ({error.message})"
    return f"Token: {base64.b64decode(part(secret, 'data').get(key, '')).decode(errors='replace')}"


def _forward(command: list[str], url: str, token: str, *, open_: bool) -> int:
    """Run the port-forward until it ends or is interrupted; returns its exit code."""
    # Ctrl-C reaches kubectl too, but SIGTERM only this process. As an interrupt, it ends kubectl below.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:  # noqa: S603
            try:
                for number, line in enumerate(_lines(process)):
                    if number == 0:  # kubectl listens now
                        click.echo(printable(f"Ray dashboard: {url}\n{token}".rstrip()))
                        if open_:
                            webbrowser.open(url)
                    click.echo(printable(line), nl=False)
            except KeyboardInterrupt:
                process.terminate()
                return 0
    except FileNotFoundError as error:
        raise missing_program(error) from error
    return process.returncode


def _lines(process: subprocess.Popen[str]) -> Iterator[str]:
    assert process.stdout is not None
    return iter(process.stdout)
