"""The lock of a job's folder: who holds it, and how a new process takes it over."""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from dreambooth_api.environment import LOCK_FD
from dreambooth_trainer.store.file_lock import LockedError, holder, lock_file, pass_on
from dreambooth_trainer.store.folder import JobFolder

CHILD = """
import os, sys
from pathlib import Path
from dreambooth_api.environment import LOCK_FD
from dreambooth_trainer.store.file_lock import lock_file
with lock_file(Path(sys.argv[1])) as lock:
    lock.name_holder(os.getpid())
    print(LOCK_FD in os.environ, os.get_inheritable(lock.file.fileno()), flush=True)
    sys.stdin.read()
"""


def test_a_lock_has_one_holder(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    assert holder(path) is None
    with lock_file(path) as lock:
        assert holder(path) == 0, "it has not written its process"
        lock.name_holder(7)
        assert holder(path) == 7
        with pytest.raises(LockedError) as caught, lock_file(path):
            pass
        assert caught.value.holder == 7
    assert holder(path) is None, "the file still names process 7"
    with lock_file(path):
        assert holder(path) == 0, "process 7 has ended"


def test_who_only_asks_for_the_holder_is_waited_for(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    with path.open() as asking:
        fcntl.flock(asking, fcntl.LOCK_SH)  # as `holder` does for a moment
        timer = threading.Timer(0.1, fcntl.flock, (asking, fcntl.LOCK_UN))
        timer.start()
        with lock_file(path):
            assert holder(path) == 0
        timer.join()


def test_a_new_process_takes_the_lock_over(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with lock_file(path) as lock:
        descriptor, variables = pass_on(lock)
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            pass_fds=(descriptor,),
            env=os.environ | variables,
        )
        lock.name_holder(child.pid)
    assert holder(path) == child.pid, "also before it has done anything"
    assert child.stdout and child.stdin
    assert child.stdout.readline() == "False False\n", "no process that it starts gets the lock"
    assert holder(path) == child.pid
    child.communicate("")
    assert holder(path) is None


@pytest.mark.parametrize("value", ["", "x", "-1", "99999", "0"])
def test_a_variable_that_is_no_lock_is_ignored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, value: str) -> None:
    monkeypatch.setenv(LOCK_FD, value)
    with lock_file(tmp_path / "lock") as lock:
        lock.name_holder(7)
        assert holder(tmp_path / "lock") == 7


def test_a_deleted_file_is_not_a_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "lock"
    opened = Path.open

    def delete_first(self: Path, *arguments: Any):
        file = opened(self, *arguments)
        monkeypatch.setattr(Path, "open", opened)
        self.unlink()  # its holder has erased the job between opening and locking
        return file

    monkeypatch.setattr(Path, "open", delete_first)
    with lock_file(path):
        assert holder(path) == 0


def test_the_folder_of_a_job_names_its_process(tmp_path: Path) -> None:
    with JobFolder(tmp_path).locked():
        assert holder(tmp_path / "work" / "lock") == os.getpid()
