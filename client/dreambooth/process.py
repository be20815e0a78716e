"""The process of a local job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from dreambooth.errors import ClientError
from dreambooth_api.status import Phase
from dreambooth_trainer.store.file_lock import Lock, holder, pass_on
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.status_file import read_record

# Ray's processes end after the one of the job.
STOP_SECONDS = 120.0
POLL_SECONDS = 0.2
# -P: modules in the current folder, such as that of a notebook, do not replace those of the trainer.
COMMAND = (sys.executable, "-P", "-m", "dreambooth_trainer", "run")
# Of the kernel of a notebook: a backend of matplotlib that only it has.
_OWN = {"MPLBACKEND"}


def start(folder: JobFolder, job_file: Path, lock: Lock, options: tuple[str, ...]) -> None:
    """Start `dreambooth run` in a session of its own, and pass the lock of the job's folder to it.

    Neither the end of this process nor an interrupt of it ends the job.
    """
    command = [*COMMAND, str(job_file), "--out", str(folder.root), *options]
    descriptor, passed = pass_on(lock)
    environment = {name: value for name, value in os.environ.items() if name not in _OWN} | passed
    with folder.console.open("wb") as console:
        process = subprocess.Popen(  # noqa: S603 - no shell
            command,
            stdin=subprocess.DEVNULL,
            stdout=console,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            pass_fds=(descriptor,),
            env=environment,
        )
    with contextlib.suppress(OSError):  # on a full disk, what has started goes on
        lock.name_holder(process.pid)
    # Without it, the process would remain as a zombie until this one ends.
    threading.Thread(target=process.wait, daemon=True).start()


def stop(folder: JobFolder) -> None:
    """Ask the process of a job to save its work and to end, if there is one.

    Raises:
        ClientError: it belongs to another user, to another program, or to another machine.
    """
    deadline = time.monotonic() + STOP_SECONDS
    # Until it writes its status, the process does not handle the signal.
    while (record := read_record(folder)) and record.status.phase is Phase.STARTING and time.monotonic() < deadline:
        if holder(folder.lock) is None:
            return
        time.sleep(POLL_SECONDS)
    while (process := holder(folder.lock)) is not None:
        # 0 would be all processes of this one's group.
        if process > 0 and _terminate(process, folder.root):
            return
        if time.monotonic() >= deadline:
            rule = f"process {process or 'of unknown ID'}, which uses {folder.root}, was not found on this machine"
            raise ClientError(f"{rule}; stop it on the machine where it runs")
        time.sleep(POLL_SECONDS)


def _terminate(process_id: int, folder: Path) -> bool:
    """Send SIGTERM to the process of a job.

    Returns:
        Whether it was sent. If not, the process is ending already, has ended, or runs on another machine.
    """
    command = _command_line(process_id)
    if not command:
        return False
    if b"dreambooth" not in command:
        rule = f"process {process_id}, which uses {folder}, is not dreambooth run"
        raise ClientError(f"{rule}; wait until it ends")
    try:
        os.kill(process_id, signal.SIGTERM)
    except ProcessLookupError:
        return False
    except PermissionError as error:
        raise ClientError(f"process {process_id} of the job in {folder} belongs to another user") from error
    return True


def _command_line(process_id: int) -> bytes:
    """The command of a process; empty if there is none. A process that ends has none, but may still hold its lock."""
    try:
        return Path(f"/proc/{process_id}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        # Without /proc, as on macOS, the lock is trusted.
        return b"" if Path("/proc/self").exists() else b"dreambooth"
