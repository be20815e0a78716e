"""A lease on any fsspec file system, which lets one process work while others wait.

The lease is a file that only one process can create. The holder rewrites it every few seconds. A waiter takes over a
lease that did not change for `stale_seconds` of the waiter's own clock, so clocks need not be synchronized. In rare
cases, a takeover results in two holders for a short time: use a lease only for work that is safe to do twice.
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
    """Wait for the lease at `path`, and hold it until the block ends.

    Args:
        while_waiting: called about every half second while another process holds the lease.
    """
    owner = {"host": socket.gethostname(), "pid": os.getpid(), "id": uuid.uuid4().hex, "beat": 0}
    _acquire(fs, path, owner, while_waiting, stale_seconds)
    stop = threading.Event()
    heartbeat = threading.Thread(target=_send_heartbeats, args=(fs, path, owner, stop), daemon=True)
    heartbeat.start()
    try:
        yield
    finally:
        stop.set()
        heartbeat.join()
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(path)


def _acquire(
    fs: fsspec.AbstractFileSystem,
    path: str,
    owner: dict[str, object],
    while_waiting: Callable[[], None],
    stale_seconds: float,
) -> None:
    seen, since = b"", time.monotonic()
    while True:
        try:
            # pipe_file(mode="create") is not atomic on a local disk: it checks for existence before it writes.
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
        if _is_dead_local_process(content) or time.monotonic() - since > stale_seconds:
            with contextlib.suppress(FileNotFoundError):
                fs.rm_file(path)
            continue
        while_waiting()
        time.sleep(0.5)


def _send_heartbeats(fs: fsspec.AbstractFileSystem, path: str, owner: dict[str, object], stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(HEARTBEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError):  # The next heartbeat compensates; losing the lease only costs time.
            fs.pipe_file(path, json.dumps({**owner, "beat": beat}).encode())


def _is_dead_local_process(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended, so that its lease can be taken over at once."""
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
