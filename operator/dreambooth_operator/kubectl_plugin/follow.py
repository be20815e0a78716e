"""Copies the images of a job's validations during training, and its report at the end."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import os
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import click

from dreambooth_api import layout
from dreambooth_api.status import Phase, printable
from dreambooth_operator.kubectl_plugin.fetch import fetch_pod, folder_in_pod, pack_command, running, unpack
from dreambooth_operator.kubectl_plugin.logs import running_heads
from dreambooth_operator.kubectl_plugin.polling import get_again, is_transient
from dreambooth_operator.kubectl_plugin.render import is_finished
from dreambooth_operator.machinery.client import CONNECTION_ERRORS, Api, ApiError
from dreambooth_operator.machinery.resources import Json, Key, part

FOLLOW_SECONDS = 5
# Of one command: its arguments have a limited length.
MAX_FILES = 500
# The folder of the job exists, that of the validations only after the first one. Others are not searched.
_FIND = ("-type", "d", "!", "-name", layout.VALIDATION, "!", "-name", "step-*", "-prune", "-o", "-name", "*.png")
_IMAGE = re.compile(rf"(\d{{1,18}})(?:\.\d*)? .*/{layout.VALIDATION}/(step-\d{{6,9}}/\d{{1,3}}\.png)")
_PNG = b"\x89PNG\r\n\x1a\n"
_CHUNK = 4096  # of kitty's protocol


async def follow(
    api: Api,
    key: Key,
    out: Path,
    kubectl: Sequence[str],
    show: Callable[[Path], None],
    on_wait: Callable[[str], None] = lambda _: None,
) -> None:
    """Copy new images to `out` until the job has finished, then its report and the images of its model.

    Images of an earlier training with the same names are replaced.

    Args:
        kubectl: the kubectl command, with the options that select the same cluster.
        show: called with each file that was written.
        on_wait: called with the phase and the message of a job that does not run, when they change. The command also
            waits for a rejected job, which starts once the cause is fixed.

    Raises:
        click.ClickException: the job did not succeed, or files could not be copied.
        ApiError: the API server returned an error.
    """
    copied: dict[str, int] = {}
    shown_state = ""
    while not is_finished(job := await get_again(api, key)):
        if (state := _waiting(job)) and state != shown_state:
            shown_state = state
            on_wait(state)
        # Neither a pod that is deleted meanwhile nor a server that cannot answer now is an error.
        with contextlib.suppress(_NotCopiedError):
            heads = await _heads(api, key)
            if heads and part(job, "status", "startedWith"):
                pod = heads[-1]["metadata"]["name"]
                command = [*kubectl, "exec", "-n", key.namespace, pod, "-c", "ray-head", "--"]
                await _copy_new(job, command, out, show, copied)
        await asyncio.sleep(FOLLOW_SECONDS)
    phase = part(job, "status").get("phase")
    if part(job, "status", "startedWith"):
        async with running(api, fetch_pod(job)) as pod:
            command = [*kubectl, "exec", "-n", key.namespace, pod, "--"]
            with contextlib.nullcontext() if phase == Phase.SUCCEEDED else contextlib.suppress(_NotCopiedError):
                await _copy_new(job, command, out, show, copied)
            if phase == Phase.SUCCEEDED:
                await _copy_published(job, command, out, show)
    if phase != Phase.SUCCEEDED:
        # Its folder may have the model of an earlier job.
        message = part(job, "status").get("message", "")
        raise click.ClickException(f"job {key.name} did not succeed; its phase is {phase}: {message}")


def _waiting(job: Json) -> str:
    """Phase and message of a job that does not run; empty if it does."""
    phase, message = part(job, "status").get("phase", Phase.PENDING), part(job, "status").get("message")
    if phase == Phase.RUNNING:
        return ""
    return printable(f"job {part(job, 'metadata').get('name')} is {phase}" + (f": {message}" if message else ""))


class _NotCopiedError(click.ClickException):
    """Images could not be copied now."""


async def _heads(api: Api, key: Key) -> list[Json]:
    try:
        return await running_heads(api, key)
    except (ApiError, *CONNECTION_ERRORS) as error:
        if is_transient(error):
            return []
        raise


async def _copy_new(
    job: Json, command: list[str], out: Path, show: Callable[[Path], None], copied: dict[str, int]
) -> None:
    """Copy the images that `out` does not have.

    Args:
        copied: the time of each image that this command has copied. Not every file system keeps the exact time.

    Raises:
        _NotCopiedError: a command in the pod failed.
    """
    find = ["find", folder_in_pod(job, ""), "-mindepth", "1", *_FIND, "-printf", "%T@ %p\\n"]
    times, target = image_times(await _run([*command, *find])), out / layout.VALIDATION
    new = [name for name, time in times.items() if copied.get(name) != time and _time(target / name) != time]
    pack = [*command, "tar", "-cf", "-", "-C", folder_in_pod(job, layout.VALIDATION), "--"]
    for first in range(0, len(new), MAX_FILES):
        names = new[first : first + MAX_FILES]
        unpack(await _run([*pack, *names]), target)
        for name in names:
            copied[name] = times[name]
            show(target / name)


def _time(path: Path) -> int | None:
    return int(path.stat().st_mtime) if path.exists() else None


async def _copy_published(job: Json, command: list[str], out: Path, show: Callable[[Path], None]) -> None:
    unpack(await _run([*command, *pack_command(job)]), out)
    for name in layout.VIEWED:
        show(out / name)


async def _run(command: list[str]) -> bytes:
    done = await asyncio.to_thread(subprocess.run, command, capture_output=True, check=False)
    if done.returncode:
        raise _NotCopiedError(printable(done.stderr.decode(errors="replace")).strip())
    return done.stdout


def image_times(listed: bytes) -> dict[str, int]:
    """The images in the output of `find`, as step-000100/0.png, in the order of their steps and numbers. Pure.

    Returns:
        The time of the last change by name, in whole seconds, as a tar archive has it.
    """
    matches = filter(None, map(_IMAGE.fullmatch, listed.decode(errors="replace").splitlines()))
    found = {match[2]: int(match[1]) for match in matches}
    return dict(sorted(found.items(), key=lambda item: tuple(map(int, re.findall(r"\d+", item[0])))))


def thumbnail(path: Path, environment: Mapping[str, str] = os.environ, *, terminal: bool | None = None) -> str:
    """The control sequence that draws an image in the terminal; empty if the terminal is not known to support it.

    Args:
        terminal: whether the output is a terminal; None asks the standard output.
    """
    if not (sys.stdout.isatty() if terminal is None else terminal):
        return ""
    content = path.read_bytes()
    if not content.startswith(_PNG):
        return ""
    data = base64.b64encode(content).decode()
    if environment.get("TERM_PROGRAM") in ("iTerm.app", "WezTerm"):
        return f"\x1b]1337;File=inline=1;width=16:{data}\x07"
    if "KITTY_WINDOW_ID" in environment or environment.get("TERM") == "xterm-kitty":
        chunks = [data[start : start + _CHUNK] for start in range(0, len(data), _CHUNK)]
        last = len(chunks) - 1
        return "".join(
            f"\x1b_G{'a=T,f=100,c=16,' if index == 0 else ''}m={int(index < last)};{chunk}\x1b\\"
            for index, chunk in enumerate(chunks)
        )
    return ""
