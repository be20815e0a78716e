"""A lease on a folder of any fsspec file system: who holds it works, the others wait and watch.

Holding is a file that only one can create. The holder rewrites it every few seconds; a waiter that sees it unchanged
for `stale_seconds` of its own clock takes over, so that clocks need not agree. A takeover may, rarely, leave two
holders for a moment: use it only where doing the work twice costs time and nothing else.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any, cast

import fsspec

HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 20.0


@contextlib.contextmanager
def lease(
    fs: fsspec.AbstractFileSystem, path: str, while_waiting: Callable[[], None], stale_seconds: float = STALE_SECONDS
) -> Iterator[None]:
    """Hold the lease at `path` during the block; wait for it first, calling `while_waiting` now and then."""
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex, "beat": 0}
    _take(fs, path, owner, while_waiting, stale_seconds)
    stop = threading.Event()
    heart = threading.Thread(target=_beat, args=(fs, path, owner, stop), daemon=True)
    heart.start()
    try:
        yield
    finally:
        stop.set()
        heart.join()
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def _take(
    fs: fsspec.AbstractFileSystem,
    path: str,
    owner: dict[str, object],
    while_waiting: Callable[[], None],
    stale_seconds: float,
) -> None:
    seen, since = b"", time.monotonic()
    while True:
        try:
            # Not pipe_file(mode="create"): on a disk it looks first and writes then, so that two may win.
            with fs.open(path, "xb") as file:
                cast("Any", file).write(json.dumps(owner).encode())
            return
        except FileExistsError:
            pass
        try:
            content: Any = fs.cat_file(path)
        except FileNotFoundError:
            continue
        if content != seen:
            seen, since = content, time.monotonic()
        if _is_dead_neighbour(content) or time.monotonic() - since > stale_seconds:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
            continue
        while_waiting()
        time.sleep(0.5)


def _beat(fs: fsspec.AbstractFileSystem, path: str, owner: dict[str, object], stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(HEARTBEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError):  # A missed beat is made up by the next; a lost lease costs time only.
            fs.pipe_file(path, json.dumps({**owner, "beat": beat}).encode())


def _is_dead_neighbour(content: bytes) -> bool:
    """Whether the holder was a process of this machine that is no more: no need to wait for its lease to go stale."""
    try:
        holder = json.loads(content)
        if holder["host"] != socket.gethostname():
            return False
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError):
        return False
    return False
