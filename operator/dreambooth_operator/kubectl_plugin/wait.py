"""Command that waits for a condition or a phase of a job, or for its deletion, with the options of `kubectl wait`."""

from __future__ import annotations

import asyncio
import re
import time

import click

from dreambooth_api.status import printable
from dreambooth_operator.kubectl_plugin.connect import Cluster, run
from dreambooth_operator.kubectl_plugin.options import connection_options, job_argument
from dreambooth_operator.kubectl_plugin.polling import POLL_SECONDS, get_again
from dreambooth_operator.kubectl_plugin.render import is_finished
from dreambooth_operator.kubectl_plugin.wanted import Wanted, is_met, parse_wanted
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Key, part
from dreambooth_operator.resources import JOBS, QUALIFIED_KIND

_DURATION = re.compile(r"(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s?)?")


def parse_seconds(text: str) -> int:
    """Seconds of a duration such as 30s, 5m or 1h30m. Pure.

    Raises:
        ValueError: it is not a duration.
    """
    match = _DURATION.fullmatch(text)
    if not match or not text:
        raise ValueError(f"{text!r} is not a duration; write, for example, 30s, 5m or 1h30m")
    hours, minutes, seconds = (int(number or 0) for number in match.groups())
    return 3600 * hours + 60 * minutes + seconds


def _parsed_for(_context: click.Context, _parameter: click.Parameter, value: str) -> Wanted:
    try:
        return parse_wanted(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def _parsed_timeout(_context: click.Context, _parameter: click.Parameter, value: str) -> int:
    try:
        return parse_seconds(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.command()
@job_argument
@click.option(
    "--for",
    "wanted",
    required=True,
    metavar="condition=TYPE|phase=PHASE|delete",
    callback=_parsed_for,
    help="What to wait for. A condition may have a status: condition=Queued=False.",
)
@click.option(
    "--timeout",
    metavar="DURATION",
    default="30s",
    show_default=True,
    callback=_parsed_timeout,
    help="How long to wait, for example 30s, 5m or 2h. 0 checks once.",
)
@connection_options
def wait(name: str, wanted: Wanted, timeout: int) -> None:
    """Wait for a condition or a phase of a job, or for its deletion.

    Exit code 1 if the time is over, or if the job has finished otherwise, so that waiting cannot succeed any more.
    """
    run(lambda cluster: wait_for(cluster, Key(cluster.namespace, name), wanted, timeout))
    click.echo(f"{QUALIFIED_KIND}/{name} condition met")


async def wait_for(cluster: Cluster, key: Key, wanted: Wanted, seconds: float) -> None:
    """Wait until `wanted` is met.

    Raises:
        click.ClickException: it was not met in time, or cannot be met any more.
        ApiError: the job does not exist, or the API server returned another error. The first answer must be no error;
            later ones that are transient are ignored until the time is over.
    """
    deadline = time.monotonic() + seconds
    get = cluster.api.get(JOBS, key)
    while True:
        try:
            job = await get
        except ApiError as error:
            if wanted.kind == "delete" and error.is_not_found:
                return
            raise
        if wanted.kind != "delete" and is_met(job, wanted):
            return
        phase, message = part(job, "status").get("phase", "Pending"), part(job, "status").get("message", "")
        state = printable(f"phase {phase}: {message}" if message else f"phase {phase}")
        if wanted.kind != "delete" and is_finished(job) and not part(job, "metadata").get("deletionTimestamp"):
            raise click.ClickException(f"job {key.name} finished without reaching {wanted.kind} {wanted.name}; {state}")
        if time.monotonic() >= deadline:
            raise click.ClickException(f"timed out waiting for job {key.name}; {state}; to wait longer, set --timeout")
        await asyncio.sleep(min(POLL_SECONDS, max(0, deadline - time.monotonic())))
        get = get_again(cluster.api, key, deadline)
