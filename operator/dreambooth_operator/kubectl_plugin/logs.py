"""The output of a job's trainer: of its head pod or, once the pods are gone, the log on the job's volume."""

from __future__ import annotations

import asyncio
import subprocess
from collections.abc import Iterator

import click

from dreambooth_api import layout
from dreambooth_api.layout import latest_log
from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster, missing_program
from dreambooth_operator.kubectl_plugin.fetch import fetch_pod, folder_in_pod, running
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import PODS, Json, Key, part
from dreambooth_operator.resources import JOB_LABEL, JOBS, RAY_JOBS


async def find_log(cluster: Cluster, name: str, tail: int, *, follow: bool) -> list[str] | str:
    """The command that prints the output of a job's trainer. If it does not run, its stored log.

    Args:
        tail: number of lines from the end; all if it is negative.

    Raises:
        click.ClickException: the log does not exist, or the pod that reads it did not start.
        ApiError: the API server returned an error.
    """
    key = Key(cluster.namespace, name)
    head = await running_head(cluster.api, key)
    if head is None:
        return await stored_log(cluster.api, key, tail, list(cluster.kubectl))
    pod, file = head
    command = [*cluster.kubectl, "exec", "-n", cluster.namespace, pod, "-c", "ray-head", "--"]
    return [*command, *tail_command(tail), *["-f"] * follow, file]


async def running_heads(api: Api, key: Key) -> list[Json]:
    """The head pods of a job that run; of several attempts, the latest is the last."""
    selector = f"{JOB_LABEL}={key.name},ray.io/node-type=head"
    pods = (await api.request("GET", PODS.path(key.namespace), query={"labelSelector": selector}))["items"]
    return [pod for pod in pods if part(pod, "status").get("phase") == "Running"]


async def running_head(api: Api, key: Key) -> tuple[str, str] | None:
    """The head pod of a job that runs, and the file of the driver's output in it; None if there is none."""
    heads = [pod["metadata"]["name"] for pod in await running_heads(api, key)]
    if not heads:
        return None
    job = await api.get(JOBS, key)
    ray_job = await _ray_job(api, key, job)
    submission = part(ray_job, "status").get("jobId") if ray_job else None
    return (heads[-1], f"/tmp/ray/session_latest/logs/job-driver-{submission}.log") if submission else None  # noqa: S108 - Ray writes it there


async def stored_log(api: Api, key: Key, tail: int, kubectl: list[str]) -> str:
    """The last lines of the latest log on a job's volume, read by a pod that mounts it.

    Args:
        kubectl: the kubectl command, with the options that select the same cluster.

    Raises:
        click.ClickException: the log does not exist, or the pod did not start.
        ApiError: the API server returned an error.
    """
    job = await api.get(JOBS, key)
    hint = f"to see why, run kubectl dreambooth status {key.name} -n {key.namespace}"
    if not part(job, "status", "startedWith"):
        raise click.ClickException(f"job {key.name} has not started; {hint}")
    folder = folder_in_pod(job, layout.LOGS)
    async with running(api, fetch_pod(job)) as pod:
        command = [*kubectl, "exec", "-n", key.namespace, pod, "--"]
        listed = await _output([*command, "ls", "-1", folder])
        name = latest_log(listed.stdout.splitlines()) if not listed.returncode else None
        if name is None:
            raise click.ClickException(
                f"log of job {key.name} not found: no trainer is running, and {folder} on its volume has no log; {hint}"
            )
        read = await _output([*command, *tail_command(tail), f"{folder}/{name}"])
    if read.returncode:
        raise click.ClickException(printable(read.stderr).strip())
    return printable(read.stdout)


def tail_command(lines: int) -> list[str]:
    """The command that prints the last lines of a file; all if `lines` is negative, as in kubectl. Pure."""
    return ["tail", "-n", "+1" if lines < 0 else str(lines)]


def stream(command: list[str]) -> int:
    """Run a command and print its output without control characters; returns its exit code."""
    with started(command) as process:
        for line in output_lines(process):
            click.echo(line, nl=False)
    return process.returncode


def started(command: list[str]) -> subprocess.Popen[str]:
    """Start a command whose output is read.

    Raises:
        click.ClickException: kubectl is not installed.
    """
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace")  # noqa: S603 - no shell
    except FileNotFoundError as error:
        raise missing_program(error) from error


def output_lines(process: subprocess.Popen[str]) -> Iterator[str]:
    """The lines that a process prints, without control characters."""
    assert process.stdout is not None
    yield from map(printable, process.stdout)


async def _ray_job(api: Api, key: Key, job: Json) -> Json | None:
    """The RayJob of the latest attempt; None if there is none."""
    name = part(job, "status").get("rayJobName")
    try:
        return await api.get(RAY_JOBS, Key(key.namespace, name)) if name else None
    except ApiError as error:
        if error.is_not_found:
            return None
        raise


async def _output(command: list[str]) -> subprocess.CompletedProcess[str]:
    return await asyncio.to_thread(
        subprocess.run, command, capture_output=True, text=True, errors="replace", check=False
    )
