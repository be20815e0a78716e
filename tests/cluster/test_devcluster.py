"""The development cluster: it starts, survives a killed API server, and leaves no processes behind."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from devcluster import ControlPlane, ProcessError, reap

OWNER = """
import sys, time
from devcluster import ControlPlane
with ControlPlane() as plane:
    print(plane.folder, plane.etcd.pid, plane.apiserver.pid, flush=True)
    time.sleep(600)
"""


def test_killed_api_server_restarts_with_its_data() -> None:
    with ControlPlane() as plane:
        plane.kubectl("create", "namespace", "kept")
        plane.apiserver.kill()
        with pytest.raises(ProcessError):
            plane.kubectl("get", "namespace", "kept", "--request-timeout=2s")
        plane.start_apiserver()
        assert plane.get("namespace", "kept")["metadata"]["name"] == "kept"
        folder = plane.folder
    assert not folder.exists()


def test_no_process_outlives_a_killed_owner() -> None:
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent)},
    )
    assert owner.stdout
    folder, *pids = owner.stdout.readline().split()
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    deadline = time.monotonic() + 10
    while any(_runs(int(pid)) for pid in pids):
        assert time.monotonic() < deadline, "a child outlived its owner"
        time.sleep(0.05)
    assert Path(folder) in reap()
    assert not Path(folder).exists()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"
