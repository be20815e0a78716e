"""An exclusive lock of a file, which names its holder and can be passed to a new process.

The lock belongs to the open file: a child process that inherits the file keeps the lock when its parent closes it. So a
client that starts a job holds the lock of the job's folder from before it writes there until the job's process ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from dreambooth_api.environment import LOCK_FD

# `holder` locks the file for a moment.
_PATIENCE_SECONDS = 0.5


class LockedError(Exception):
    """Another process holds a lock.

    Attributes:
        holder: ID of that process; None if it has not written it yet.
    """

    def __init__(self, holder: int | None) -> None:
        super().__init__(f"locked by process {holder}")
        self.holder = holder


@dataclass(frozen=True)
class Lock:
    """A lock that is held as long as a process has the file open."""

    file: IO[str]

    def name_holder(self, process_id: int) -> None:
        """Write which process holds the lock."""
        descriptor = self.file.fileno()
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{process_id}\n".encode())


@contextlib.contextmanager
def lock_file(path: Path) -> Iterator[Lock]:
    """Lock a file, or take over the lock that the parent process has passed to this one, until the block ends.

    Raises:
        LockedError: another process holds the lock.
    """
    with _inherited(path) or _opened(path) as file:
        yield Lock(file)


def pass_on(lock: Lock) -> tuple[int, dict[str, str]]:
    """The file descriptor and the environment variables with which a new process takes over a lock."""
    descriptor = lock.file.fileno()
    return descriptor, {LOCK_FD: str(descriptor)}


def holder(path: Path) -> int | None:
    """The process that holds the lock of a file, 0 if it is not known yet; None if there is none."""
    try:
        with path.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return _read_holder(file) or 0
    except FileNotFoundError:
        pass
    return None


def _opened(path: Path) -> IO[str]:
    deadline = time.monotonic() + _PATIENCE_SECONDS
    while True:
        file = path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            found = _read_holder(file)
            file.close()
            if time.monotonic() > deadline:
                raise LockedError(found) from None
            time.sleep(0.05)
            continue
        if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
            file.truncate(0)  # the name of the last holder, whose ID another process may have by now
            return file
        file.close()  # somebody who held the lock has deleted the file


def _inherited(path: Path) -> IO[str] | None:
    descriptor = os.environ.get(LOCK_FD, "")
    if not descriptor.isdecimal():
        return None
    try:
        if not os.path.samestat(os.fstat(int(descriptor)), path.stat()):
            return None
    except OSError:
        return None
    del os.environ[LOCK_FD]
    os.set_inheritable(int(descriptor), False)
    return os.fdopen(int(descriptor), "a+")


def _read_holder(file: IO[str]) -> int | None:
    file.seek(0)
    text = file.read(20).partition("\n")[0]
    return int(text) if text.isdecimal() else None
