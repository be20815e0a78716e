"""The log of a local job."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from dreambooth.process import POLL_SECONDS
from dreambooth_api import layout
from dreambooth_api.status import Phase, printable
from dreambooth_trainer.store.file_lock import holder
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.status_file import read_record


def log_lines(folder: JobFolder, *, follow: bool, tail: int) -> Iterator[str]:
    """The lines of the log of the latest attempt; what its process has printed, if it has no log.

    Args:
        follow: go on with new lines until the attempt ends.
        tail: number of lines from the end; all if it is negative.
    """
    path = _log(folder)
    while follow and path is None and holder(folder.lock) is not None:
        time.sleep(POLL_SECONDS)
        path = _log(folder)
    if path is None:
        yield from last_lines(folder.console, tail)
        return
    offset = path.stat().st_size
    yield from last_lines(path, tail, offset)
    while follow:
        # The lock may be held by another attempt already.
        running = holder(folder.lock) is not None and _log(folder) == path
        # A log that has become too long was replaced by a shorter one.
        offset = min(offset, path.stat().st_size)
        with path.open("rb") as file:
            file.seek(offset)
            new = file.read()
        complete = new if not running else new[: new.rfind(b"\n") + 1]
        offset += len(complete)
        yield from complete.decode(errors="replace").splitlines()
        if not running:
            return
        time.sleep(POLL_SECONDS)


def last_lines(path: Path, count: int, size: int = -1) -> Iterator[str]:
    """The last lines of a file, without control characters.

    Args:
        count: all lines if it is negative.
        size: of the file; what was added since is not read.
    """
    try:
        with path.open("rb") as file:
            text = file.read(size).decode(errors="replace")
    except FileNotFoundError:
        return
    lines = printable(text).splitlines()
    yield from lines if count < 0 else deque(lines, maxlen=count)


def _log(folder: JobFolder) -> Path | None:
    """The log of the latest attempt; None if that has not begun one."""
    record = read_record(folder)
    if record is not None and record.status.phase is Phase.STARTING:
        return None
    logs = folder.root / layout.LOGS
    name = layout.latest_log(path.name for path in logs.iterdir()) if logs.is_dir() else None
    return None if name is None else logs / name
