"""A lease on any fsspec file system, which lets one process work while others wait.

The lease is a file that only one process can create. The holder rewrites it every few seconds. A waiter takes over a
lease that did not change for `stale_seconds` of the waiter's own clock, so clocks need not be synchronized. A waiter
also goes on, without the lease, if the holder has done no work for `max_idle_seconds`, because anybody who can write to
the folder can keep a lease alive. So there may be two holders: use a lease only for work that is safe to do twice.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import fsspec

from dreambooth_trainer.store.untrusted import discard, read_file

HEARTBEAT_SECONDS = 3.0
STALE_SECONDS = 20.0
# Longer than a batch of large images takes on a CPU.
MAX_IDLE_SECONDS = 1800.0
_POLL_SECONDS = 0.5
_MAX_BYTES = 4096


@contextlib.contextmanager
def lease(
    fs: fsspec.AbstractFileSystem,
    path: str,
    while_waiting: Callable[[], int],
    stale_seconds: float = STALE_SECONDS,
    max_idle_seconds: float = MAX_IDLE_SECONDS,
) -> Iterator[None]:
    """Wait for the lease at `path`, and hold it until the block ends.

    Args:
        while_waiting: called about every half second while another process holds the lease. Returns how much of the
            work is done.
    """
    owner = {"machine": _machine(), "pid": os.getpid(), "id": uuid.uuid4().hex, "beat": 0}
    if not _acquire(fs, path, owner, while_waiting, stale_seconds, max_idle_seconds):
        yield
        return
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
    while_waiting: Callable[[], int],
    stale_seconds: float,
    max_idle_seconds: float,
) -> bool:
    """Create the lease. Returns False if its holder does not work."""
    seen, since = b"", time.monotonic()
    done, idle_since = -1, time.monotonic()
    while time.monotonic() - idle_since < max_idle_seconds:
        try:
            # pipe_file(mode="create") is not atomic on a local disk: it checks for existence before it writes.
            with fs.open(path, "xb") as file:
                cast("Any", file).write(json.dumps(owner).encode())
            return True
        except FileExistsError:
            pass
        try:
            content = read_file(fs, path, _MAX_BYTES) or b""
        except FileNotFoundError:
            continue
        if content != seen:
            seen, since = content, time.monotonic()
        if _is_dead_local_process(content) or time.monotonic() - since > stale_seconds:
            with contextlib.suppress(OSError):  # it belongs to another user of the system
                discard(fs, path)
                continue
        if (now_done := while_waiting()) != done:
            done, idle_since = now_done, time.monotonic()
        time.sleep(_POLL_SECONDS)
    return False


def _send_heartbeats(fs: fsspec.AbstractFileSystem, path: str, owner: dict[str, object], stop: threading.Event) -> None:
    beat = 0
    while not stop.wait(HEARTBEAT_SECONDS):
        beat += 1
        with contextlib.suppress(OSError):  # The next heartbeat compensates; losing the lease only costs time.
            fs.pipe_file(path, json.dumps({**owner, "beat": beat}).encode())


def _machine() -> str:
    """An ID of this machine or pod until its next boot. Its name, which others need not know, cannot be derived."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    secret = boot.read_text() if boot.exists() else str(uuid.getnode())
    return hashlib.sha256(f"{socket.gethostname()}\0{secret}".encode()).hexdigest()[:16]


def _is_dead_local_process(content: bytes) -> bool:
    """Whether the holder was a process of this machine that has ended, so that its lease can be taken over at once."""
    try:
        holder = json.loads(content)
        if holder["machine"] != _machine():
            return False
        os.kill(int(holder["pid"]), 0)
    except ProcessLookupError:
        return True
    except (ValueError, KeyError, TypeError, PermissionError, OverflowError, RecursionError):
        return False
    return False
