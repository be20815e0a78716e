"""An operator process on a control plane, for tests of whole jobs."""

import socket
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable

from devcluster import ControlPlane
from devcluster.process import Process

SYSTEM = "dreambooth-system"
RUNTIME = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothRuntime",
    "metadata": {"name": "default"},
    "spec": {
        "image": "localhost/trainer:1",
        "storage": {"claimName": "work"},
        "pods": {"worker": {"cpu": "1", "memory": "1Gi", "gpu": 0}},
        "bounds": {"outputs": ["s3://models"]},
    },
}


class Operator:
    """One operator process, with the permissions that the chart grants."""

    def __init__(self, plane: ControlPlane, name: str, *flags: str) -> None:
        self.health, self.progress = _free_port(), _free_port()
        kubeconfig = plane.kubeconfig_for_account(SYSTEM, "dreambooth-operator")
        command = [
            sys.executable, "-m", "dreambooth_operator", f"--kubeconfig={kubeconfig}", f"--namespace={SYSTEM}",
            "--host=127.0.0.1", f"--health-port={self.health}", f"--progress-port={self.progress}",
            f"--progress-url=https://127.0.0.1:{self.progress}", "--lease-seconds=4", "--retry-seconds=1",
            "--head-grace-seconds=10", *flags,
        ]  # fmt: skip
        self.process = Process(plane.folder, name, command)

    def start(self) -> "Operator":
        """Start the process, also after `process.kill()`. Returns when its caches are filled."""
        self.process.start()
        until("the operator is ready", lambda: self.get(self.health, "/readyz") == "ok", 60)
        return self

    def metric(self, name: str) -> float:
        """The sum of a metric over all its labels."""
        lines = self.get(self.health, "/metrics").splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))

    @staticmethod
    def get(port: int, path: str) -> str:
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
                return answer.read().decode()
        except OSError as error:
            return str(error)


def until(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `holds` returns true, and fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]
