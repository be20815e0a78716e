"""The output of a job's trainer: of its head pod or, once the pods are gone, the log on the job's volume."""

from __future__ import annotations

import asyncio
import re
import subprocess

import click

from dreambooth_api import layout
from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import missing_program
from dreambooth_operator.kubectl_plugin.fetch import fetch_pod, folder_in_pod, running
from dreambooth_operator.machinery.client import Api, ApiError
from dreambooth_operator.machinery.resources import PODS, Json, Key, part
from dreambooth_operator.resources import JOB_LABEL, JOBS, RAY_JOBS

_LOG = re.compile(r"attempt-(\d{1,9})\.log")


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
        click.ClickException: there is no log, or the pod did not start.
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
        name = latest_log(listed.stdout) if not listed.returncode else None
        if name is None:
            raise click.ClickException(
                f"job {key.name} has no running trainer and no log in {folder} of its volume; {hint}"
            )
        read = await _output([*command, *tail_command(tail), f"{folder}/{name}"])
    if read.returncode:
        raise click.ClickException(printable(read.stderr).strip())
    return printable(read.stdout)


def tail_command(lines: int) -> list[str]:
    """The command that prints the last lines of a file; all if `lines` is negative, as in kubectl. Pure."""
    return ["tail", "-n", "+1" if lines < 0 else str(lines)]


def latest_log(listed: str) -> str | None:
    """The name of the log of the last attempt in the list of a folder. Pure."""
    found = [match for match in map(_LOG.fullmatch, listed.splitlines()) if match]
    return max(found, key=lambda match: int(match[1]))[0] if found else None


def stream(command: list[str]) -> int:
    """Run a command and print its output without control characters; returns its exit code."""
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, errors="replace") as process:  # noqa: S603 - no shell
            assert process.stdout is not None
            for line in process.stdout:
                click.echo(printable(line), nl=False)
    except FileNotFoundError as error:
        raise missing_program(error) from error
    return process.returncode


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
