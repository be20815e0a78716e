"""The preStop hook of a Ray pod."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from dreambooth_api.environment import OUT
from dreambooth_trainer.cluster import pre_stop


@contextmanager
def process(title: str, code: str) -> Iterator[subprocess.Popen[str]]:
    """A Python process with a title as Ray sets it."""
    command = ["ray::" + title, "-c", code]
    child = subprocess.Popen(command, executable=sys.executable, stdout=subprocess.PIPE, text=True)
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        yield child
    finally:
        child.kill()
        child.wait()


@pytest.fixture
def only_mine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hide the Ray processes of other tests on this machine."""
    find = pre_stop.find_processes

    def is_child(process_id: int) -> bool:
        try:
            fields = Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return False
        return int(fields[1]) == os.getpid() and fields[0] != "Z"

    monkeypatch.setattr(pre_stop, "find_processes", lambda title: [p for p in find(title) if is_child(p)])


def test_a_worker_is_sent_sigterm_and_is_awaited(only_mine: None) -> None:
    saves = (
        "import signal, sys, time\n"
        "signal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), sys.exit(7)))\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with process("RayTrainWorker.execute", saves) as worker:
        pre_stop.main()
        # A process that ends has no title any more before its parent can see its exit status.
        assert worker.wait(timeout=2) == 7


def test_the_head_waits_until_a_checkpoint_is_registered(
    only_mine: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(OUT, str(tmp_path))
    monkeypatch.setattr(pre_stop, "_REPORT_SECONDS", 0.1)
    run = tmp_path / "work" / "checkpoints" / "key"
    run.mkdir(parents=True)

    def register() -> None:
        time.sleep(1)
        (run / "checkpoint_manager_snapshot.json").write_text("{}")

    with process("TrainController", "import time; print('ready', flush=True); time.sleep(60)") as controller:
        thread = threading.Thread(target=register)
        thread.start()
        pre_stop.main()
        thread.join()
        assert (run / "checkpoint_manager_snapshot.json").exists()
        assert controller.poll() is None


def test_a_pod_that_does_not_train_stops_at_once(only_mine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(OUT, raising=False)
    started = time.monotonic()
    pre_stop.main()
    assert time.monotonic() - started < 1


def test_the_wait_ends_at_the_deadline(only_mine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pre_stop, "SAVE_SECONDS", 1)
    ignores = (
        "import signal, time\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('ready', flush=True)\n"
        "time.sleep(60)\n"
    )
    with process("RayTrainWorker.execute", ignores) as worker:
        pre_stop.main()
        assert worker.poll() is None
        worker.send_signal(signal.SIGKILL)
