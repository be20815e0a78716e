"""Processes that do not outlive their owner, and cleanup after owners that crashed.

Two nets: the kernel kills a child when the thread that started it dies (PR_SET_PDEATHSIG),
and `reap` finds run folders whose owner is gone, kills the pids noted there (only if their
command line still names that folder) and removes the folder.
"""

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path

_PREFIX = "dreambooth-cluster-"
_PR_SET_PDEATHSIG = 1
_libc = ctypes.CDLL(None, use_errno=True)


class ProcessError(RuntimeError):
    """A program exited or did not become ready. The message contains the end of its log."""


def new_folder() -> Path:
    """A new run folder that records the id of this process, so that `reap` can find its owner."""
    folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
    (folder / "owner").write_text(str(os.getpid()))
    return folder


def reap() -> list[Path]:
    """Kill the processes and remove the run folders of owners that no longer exist. Returns the folders."""
    left = []
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if _alive(int((folder / "owner").read_text())):
                continue
            for note in folder.glob("*.pid"):
                pid = int(note.read_text())
                if str(folder) in _command_line(pid):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(folder, ignore_errors=True)
            left.append(folder)
    return left


class Process:
    """A program. Its log is `<folder>/<name>.log`, its process id is in `<name>.pid`."""

    def __init__(self, folder: Path, name: str, command: list[str], env: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.command = command
        self.log = folder / f"{name}.log"
        self._note = folder / f"{name}.pid"
        self._env = env
        self._child: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int | None:
        return self._child.pid if self._child else None

    def start(self) -> "Process":
        with self.log.open("ab") as log:
            self._child = subprocess.Popen(
                self.command,
                stdout=log,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **self._env} if self._env else None,
                preexec_fn=_die_with_parent,
            )
        self._note.write_text(str(self._child.pid))
        return self

    @property
    def has_ended(self) -> bool:
        """Whether the program is not running: it exited, was killed, or was never started."""
        return self._child is None or self._child.poll() is not None

    def check(self) -> None:
        """Raise ProcessError if the program has exited."""
        if self.has_ended:
            code = self._child.returncode if self._child else "not started"
            raise ProcessError(f"{self.name} exited ({code}):\n{self.tail()}")

    def tail(self, size: int = 3000) -> str:
        return self.log.read_text(errors="replace")[-size:] if self.log.exists() else ""

    def kill(self) -> None:
        """Kill it, as in a crash."""
        self._end(signal.SIGKILL, grace_seconds=0)

    def stop(self, grace_seconds: float = 5) -> None:
        self._end(signal.SIGTERM, grace_seconds)

    def _end(self, how: signal.Signals, grace_seconds: float) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.send_signal(how)
        try:
            child.wait(grace_seconds or None)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
        self._note.unlink(missing_ok=True)


def wait_until(what: str, ready: Callable[[], bool], *, seconds: float = 30, process: Process | None = None) -> None:
    """Poll `ready` every 50 ms; raise ProcessError after `seconds` or if `process` exits."""
    deadline = time.monotonic() + seconds
    while not ready():
        if process:
            process.check()
        if time.monotonic() > deadline:
            tail = f"\n{process.tail()}" if process else ""
            raise ProcessError(f"{what}: not within {seconds} s{tail}")
        time.sleep(0.05)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode()
    except FileNotFoundError:
        return ""
