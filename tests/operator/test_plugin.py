"""kubectl dreambooth against the real API server."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from pathlib import Path
from typing import Any, cast

import click
import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane, binary
from operatorprocess import until
from test_crd import MINIMAL

from dreambooth_api import environment
from dreambooth_api.layout import latest_log
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.connect import Cluster
from dreambooth_operator.kubectl_plugin.logs import find_log, stream, tail_command
from dreambooth_operator.machinery.client import Api
from dreambooth_operator.machinery.resources import Key, Resource


def run(plane: ControlPlane, namespace: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "-n", namespace, "--kubeconfig", str(plane.kubeconfig)])


def test_status_suspend_resume_and_events(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    plane.kubectl(
        *("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p"),
        '{"status": {"phase": "Failed", "message": "All [/red] retries failed.",'
        ' "attempts": 2, "training": {"step": 5, "steps": 10, "progress": "5/10", "samples": 20,'
        ' "worldSize": 2, "savedStep": 4, "selectedStep": 3, "loss": 0.5},'
        ' "conditions": [{"type": "Failed", "status": "True", "reason": "BadImages",'
        ' "message": "1.png is not an image [/red]", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}',
    )
    shown = run(plane, namespace, "status", "my-dog").output
    for part in (
        "Failed",
        "All [/red] retries failed.",
        "attempt 2",
        "5/10",
        "20 samples  world size 2  step 4 saved  step 3 selected  loss 0.5",
        "BadImages",
        "1.png is not an image [/red]",
    ):
        assert part in shown
    assert run(plane, namespace, "status", "my-dog", "--watch").exit_code == 0, "a finished job is not watched"
    for verb, suspended in (("suspend", True), ("resume", False)):
        assert run(plane, namespace, verb, "my-dog").exit_code == 0
        assert plane.get("dbj", "my-dog", "-n", namespace)["spec"]["runPolicy"]["suspend"] is suspended
    assert run(plane, namespace, "events", "my-dog").exit_code == 0


def test_errors_are_single_lines(plane: ControlPlane, namespace: str) -> None:
    missing = run(plane, namespace, "status", "nobody")
    assert missing.exit_code == 1
    found = 'Error: dreamboothjobs.dreambooth.dev "nobody" not found; to list jobs, run kubectl dreambooth list, with'
    assert missing.output.strip() == f"{found} -n for another namespace"
    assert run(plane, namespace, "logs", "nobody").output == missing.output
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    assert "has not started; to see why, run" in run(plane, namespace, "logs", "my-dog").output


def start_fetch_pods(plane: ControlPlane, namespace: str, stop: threading.Event) -> None:
    """Take the place of the kubelet: pods run at once."""
    while not stop.wait(0.1):
        for pod in plane.get("pods", "-n", namespace)["items"]:
            if pod["status"]["phase"] == "Pending":
                patch = ("--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Running"}}')
                plane.kubectl("patch", "pod", pod["metadata"]["name"], "-n", namespace, *patch)


def test_logs_are_read_from_the_volume_after_the_pods_are_gone(
    plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kubectl = tmp_path / "bin" / "kubectl"
    kubectl.parent.mkdir()
    # `kubectl exec` runs the command here.
    kubectl.write_text(
        f'#!/bin/sh\ncase " $* " in *" exec "*) ;; *) exec {binary("kubectl")} "$@" ;; esac\n'
        'while [ "$1" != -- ]; do shift; done\nshift\nexec "$@"\n'
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{kubectl.parent}:{os.environ['PATH']}")
    monkeypatch.setattr(environment, "OUTPUT_PATH", str(tmp_path))
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    until("pods can be created", lambda: plane.get("serviceaccounts", "-n", namespace)["items"])
    started = {"runtime": {"name": "default"}, "image": "trainer:1", "model": {"id": "builtin:sprites"}}
    started |= {"claimName": "models", "folder": "dogs/my-dog"}
    status = json.dumps({"status": {"phase": "Failed", "startedWith": started}})
    plane.kubectl("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
    stop = threading.Event()
    threading.Thread(target=start_fetch_pods, args=(plane, namespace, stop), daemon=True).start()
    try:
        assert "log of job my-dog not found" in run(plane, namespace, "logs", "my-dog").output
        folder = tmp_path / "dogs" / "my-dog" / "logs"
        folder.mkdir(parents=True)
        for number in (2, 9, 10):
            text = f"first\nattempt {number} \x1b[2Jfailed\nlast\n"
            (folder / f"attempt-{number}.log").write_text(text)
        assert run(plane, namespace, "logs", "my-dog", "--tail=2").output == "attempt 10 failed\nlast\n"
    finally:
        stop.set()
    assert plane.get("pods", "-n", namespace)["items"] == [], "the pod that read it is deleted"


def test_the_latest_log_is_found() -> None:
    assert latest_log(["attempt-9.log", "attempt-10.log", "attempt-11.log.bak", "other"]) == "attempt-10.log"
    assert latest_log(["notes.txt"]) is None


@pytest.mark.parametrize(("lines", "printed"), [(2, "b\nc\n"), (0, ""), (-1, "a\nb\nc\n")])
def test_tail(tmp_path: Path, lines: int, printed: str) -> None:
    (tmp_path / "log").write_text("a\nb\nc\n")
    assert subprocess.check_output([*tail_command(lines), tmp_path / "log"], text=True) == printed


def test_streamed_output_cannot_control_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    assert stream(["sh", "-c", r"printf 'a \033[2J\342\200\256b\nc\n'; exit 3"]) == 3
    assert capsys.readouterr().out == "a b\nc\n"


@pytest.mark.parametrize(
    "verb", ["create", "dashboard", "delete", "events", "get", "images", "logs", "resume", "status", "suspend", "wait"]
)
@pytest.mark.parametrize(
    "bad", ["..", "../victim/dreamboothjobs/dog", "a,involvedObject.kind!=x", "a?x", "a#", "A", "a\n"]
)
def test_invalid_names_are_rejected(verb: str, bad: str) -> None:
    """They are rejected before a connection is made."""
    required = {"wait": ["--for=delete"], "create": ["--images=photos", "--class=dog"]}.get(verb, [])
    for arguments in ([verb, *required, bad, "-n", "team"], [verb, *required, "dog", "-n", bad]):
        shown = CliRunner(env={"KUBECONFIG": "/nonexistent"}).invoke(cli, arguments)
        assert shown.exit_code == 2
        assert "is not a Kubernetes name: at most 63" in shown.output.replace("\n", " ").replace("│ ", "")


class HeadsApi:
    """The head pods of a job, and the RayJob of its latest attempt."""

    def __init__(self, **phases: str) -> None:
        self.pods = [{"metadata": {"name": name}, "status": {"phase": phase}} for name, phase in phases.items()]

    async def request(self, _method: str, _path: str, *, query: dict[str, str]) -> dict[str, Any]:
        assert query["labelSelector"].endswith("=my-dog,ray.io/node-type=head")
        return {"items": self.pods}

    async def get(self, resource: Resource, key: Key) -> dict[str, Any]:
        if resource.kind == "RayJob":
            assert key == Key("team", "my-dog-2")
            return {"status": {"jobId": "submission"}}
        return {"metadata": {"name": "my-dog"}, "status": {"rayJobName": "my-dog-2"}}


@pytest.mark.parametrize("follow", [False, True])
async def test_the_log_of_the_latest_head_that_runs_is_printed(follow: bool) -> None:
    api = cast("Api", HeadsApi(first="Running", second="Running", third="Pending"))
    cluster = Cluster(api, "team", ("kubectl", "--context=dev"))
    command = await find_log(cluster, "my-dog", 20, follow=follow)
    driver = "/tmp/ray/session_latest/logs/job-driver-submission.log"
    pod = ["kubectl", "--context=dev", "exec", "-n", "team", "second", "-c", "ray-head", "--"]
    assert command == [*pod, "tail", "-n", "20", *["-f"] * follow, driver]
    with pytest.raises(click.ClickException, match="job my-dog has not started"):
        await find_log(Cluster(cast("Api", HeadsApi(third="Pending")), "team", ()), "my-dog", 20, follow=follow)
