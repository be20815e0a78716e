"""kubectl dreambooth against the real API server."""

from __future__ import annotations

import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane
from test_crd import MINIMAL

from dreambooth_operator.kubectl_plugin.cli import cli


def run(plane: ControlPlane, namespace: str, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "-n", namespace, "--kubeconfig", str(plane.kubeconfig)])


def test_status_suspend_resume_and_events(plane: ControlPlane, namespace: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    plane.kubectl(
        *("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p"),
        '{"status": {"phase": "Failed", "message": "All [/red] retries failed.",'
        ' "attempts": 2, "training": {"step": 5, "steps": 10, "progress": "5/10", "samples": 20,'
        ' "worldSize": 2, "savedStep": 4, "loss": 0.5},'
        ' "conditions": [{"type": "Failed", "status": "True", "reason": "BadImages",'
        ' "message": "1.png is not an image [/red]", "lastTransitionTime": "2026-01-01T00:00:00Z"}]}}',
    )
    shown = run(plane, namespace, "status", "my-dog").output
    for part in (
        "Failed",
        "All [/red] retries failed.",
        "attempt 2",
        "5/10",
        "20 samples  world size 2  step 4 saved  loss 0.5",
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
    assert missing.output.strip() == 'Error: dreamboothjobs.dreambooth.dev "nobody" not found'
    assert "has no pods; to see why, run" in run(plane, namespace, "logs", "nobody").output


@pytest.mark.parametrize("verb", ["status", "logs", "events", "images", "suspend", "resume"])
@pytest.mark.parametrize(
    "bad", ["..", "../victim/dreamboothjobs/dog", "a,involvedObject.kind!=x", "a?x", "a#", "A", "a\n"]
)
def test_invalid_names_are_rejected(plane: ControlPlane, namespace: str, verb: str, bad: str) -> None:
    for shown in (run(plane, namespace, verb, bad), run(plane, bad, verb, "dog")):
        assert shown.exit_code == 2
        assert "is not a Kubernetes name: at most 63" in shown.output.replace("\n", " ").replace("│ ", "")
