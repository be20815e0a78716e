"""The sample job at reduced size, as a tenant applies it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import quote

from devcluster import NodeCluster, binary
from devcluster.system import add_namespace, sample, sprites_runtime

from dreambooth_api.job import API_VERSION

CLASS_IMAGES = 16
STEPS = 120  # enough that a kill interrupts the training even on a slow machine
SMALL = {
    "priorPreservation": {"numClassImages": CLASS_IMAGES},
    "training": {"steps": STEPS, "checkpointEverySteps": 4},
    "evaluation": {"imagesPerPrompt": 1, "prompts": ["a {}", "a {} on the beach"]},
    "cluster": {"workers": 2},
}


def until(what: str, holds: Callable[[], object], seconds: float = 60) -> None:
    """Wait until `holds` returns true, and fail with `what` after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"{what}: not within {seconds} s"
        time.sleep(0.5)


class Job:
    """The sample job at reduced size in a tenant's namespace. `spec` replaces parts of it."""

    def __init__(self, cluster: NodeCluster, tenant: str, /, **spec: Any) -> None:
        self.cluster, self.tenant = cluster, tenant
        add_namespace(cluster, tenant)
        self.volume = cluster.add_volume(tenant, "models")
        cluster.apply(sprites_runtime())
        job = sample("sprites.yaml", namespace=tenant)
        job["spec"] |= SMALL | spec
        cluster.apply(job)

    @property
    def status(self) -> dict[str, Any]:
        jobs = f"/apis/{API_VERSION}/namespaces/{self.tenant}/dreamboothjobs"
        return self.cluster.read(f"{jobs}/pink-dog").get("status", {})

    @property
    def step(self) -> int:
        return self.status.get("training", {}).get("step", 0)

    @property
    def class_images(self) -> list[Path]:
        return sorted(self.volume.glob(".class-images/namespaces/*/class-images/*/*.png"))

    def pods(self, kind: str) -> list[str]:
        """Names of the running head or worker pods."""
        return [pod["metadata"]["name"] for pod in self.running(kind)]

    def address(self, kind: str) -> str:
        """The address of a running pod."""
        return self.running(kind)[0]["status"]["podIP"]

    def exec(self, kind: str, *command: str) -> str:
        """The output of a command in a running pod."""
        return self.cluster.kubectl(
            "exec", "-n", self.tenant, self.pods(kind)[0], f"--container=ray-{kind}", "--", *command
        )

    def running(self, kind: str) -> list[dict[str, Any]]:
        """The running head or worker pods."""
        selector = f"dreambooth.dev/job=pink-dog,ray.io/node-type={kind}"
        pods = f"/api/v1/namespaces/{self.tenant}/pods?labelSelector={quote(selector)}"
        items = self.cluster.read(pods)["items"]
        return [pod for pod in items if pod["status"]["phase"] == "Running"]

    def kill(self, kind: str) -> None:
        """Remove a running pod without a word."""
        until(f"a {kind} runs", lambda: self.pods(kind), 120)
        self.cluster.kubectl("delete", "pod", "-n", self.tenant, self.pods(kind)[0], "--force", "--grace-period=0")

    def plugin(self, verb: str, *arguments: str) -> str:
        """The output of `kubectl dreambooth` for the job."""
        command = [str(Path(sys.executable).parent / "kubectl-dreambooth"), verb, "pink-dog", "-n", self.tenant]
        flags = [f"--kubeconfig={self.cluster.kubeconfig}", *arguments]
        path = f"{os.environ['PATH']}:{binary('kubectl').parent}"
        env = {**os.environ, "PATH": path}
        return subprocess.run([*command, *flags], env=env, check=True, capture_output=True, text=True).stdout

    def until(self, what: str, holds: Callable[[], object], seconds: float) -> None:
        """Wait until `holds` returns true. On a timeout, print the status of the job."""
        try:
            until(what, holds, seconds)
        except AssertionError:
            print(json.dumps(self.status, indent=1), self.cluster.kubectl("get", "pods", "-n", self.tenant))
            raise

    def succeeds(self, seconds: float = 420) -> dict[str, Any]:
        self.until("the job finishes", lambda: self.status.get("phase") in ("Succeeded", "Failed"), seconds)
        assert self.status["phase"] == "Succeeded", json.dumps(self.status, indent=1)
        return self.status
