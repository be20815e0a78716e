"""kubectl dreambooth list, delete and wait."""

from __future__ import annotations

import json
import re
import threading

import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane
from test_crd import MINIMAL

from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.listing import format_objects, format_table
from dreambooth_operator.kubectl_plugin.wait import parse_seconds
from dreambooth_operator.kubectl_plugin.wanted import Wanted, is_met, parse_wanted


def run(plane: ControlPlane, *arguments: str) -> Result:
    return CliRunner().invoke(cli, [*arguments, "--kubeconfig", str(plane.kubeconfig)])


def create(plane: ControlPlane, namespace: str, name: str = "my-dog", **status: object) -> None:
    job = MINIMAL | {"metadata": {"name": name}}
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(job))
    if status:
        set_status(plane, namespace, name, **status)


def set_status(plane: ControlPlane, namespace: str, name: str, **status: object) -> None:
    patch = json.dumps({"status": status})
    plane.kubectl("patch", "dbj", name, "-n", namespace, "--subresource=status", "--type=merge", "-p", patch)


def rows(lines: list[str]) -> list[list[str]]:
    """The words of each line. Ages may differ by seconds."""
    return [re.sub(r"\b\d+s\b", "AGE", line).split() for line in lines]


def test_list_prints_what_kubectl_get_prints(plane: ControlPlane, namespace: str) -> None:
    assert run(plane, "list", "-n", namespace).output == f"No jobs found in {namespace} namespace.\n"
    create(plane, namespace, phase="Running", training={"progress": "5/10"}, message="trains")
    create(plane, namespace, "your-dog")
    for flags in ((), ("-o", "wide")):
        shown = run(plane, "list", "-n", namespace, *flags)
        expected = plane.kubectl("get", "dbj", "-n", namespace, *flags).splitlines()
        assert rows(shown.output.splitlines()) == rows(expected)
        assert shown.output.splitlines()[0] == expected[0].rstrip()
    names = "dreamboothjob.dreambooth.dev/my-dog\ndreamboothjob.dreambooth.dev/your-dog\n"
    assert run(plane, "get", "-n", namespace, "-o", "name").output == names
    everywhere = run(plane, "list", "-A").output
    assert everywhere.startswith("NAMESPACE ")
    assert any(line.split()[:3] == [namespace, "my-dog", "Running"] for line in everywhere.splitlines())


def test_get_prints_objects(plane: ControlPlane, namespace: str) -> None:
    create(plane, namespace)
    one = json.loads(run(plane, "get", "my-dog", "-n", namespace, "-o", "json").output)
    assert (one["kind"], one["metadata"]["name"]) == ("DreamBoothJob", "my-dog")
    assert yaml.safe_load(run(plane, "get", "my-dog", "-n", namespace, "-o", "yaml").output) == one
    assert json.loads(run(plane, "list", "-n", namespace, "-o", "json").output)["items"][0]["spec"] == one["spec"]
    assert run(plane, "get", "my-dog", "-n", namespace).output.splitlines()[1].startswith("my-dog ")
    assert run(plane, "get", "my-dog", "-A").exit_code == 2
    assert run(plane, "get", "nobody", "-n", namespace).exit_code == 1


def test_cells_cannot_control_a_terminal() -> None:
    columns = [{"name": "Name"}, {"name": "Message", "priority": 0}, {"name": "More", "priority": 1}]
    rows = [
        {"cells": ["a", "x\x1b[2Jy\nz", "w"], "object": {"metadata": {"namespace": "n"}}},
        {"cells": ["b", None, 3]},
    ]
    assert format_table(columns, rows, wide=False, namespaces=False) == "NAME   MESSAGE\na      xy z\nb"
    assert format_table(columns, rows[:1], wide=True, namespaces=True).endswith("\nn           a      xy z      w")
    for output in ("json", "yaml"):
        assert "\x1b" not in format_objects({"a": "\x1b[2J"}, output)


def test_managed_fields_are_not_printed() -> None:
    job = {"kind": "DreamBoothJob", "metadata": {"name": "a", "managedFields": [{"manager": "kubectl"}]}, "spec": {}}
    shown = {"kind": "DreamBoothJob", "metadata": {"name": "a"}, "spec": {}}
    listed = {"kind": "DreamBoothJobList", "metadata": {"resourceVersion": "5"}}
    for output, load in (("json", json.loads), ("yaml", yaml.safe_load)):
        assert load(format_objects(job, output)) == shown
        assert load(format_objects({**listed, "items": [job]}, output)) == {**listed, "items": [shown]}


def test_delete(plane: ControlPlane, namespace: str) -> None:
    create(plane, namespace)
    create(plane, namespace, "your-dog")
    deleted = run(plane, "delete", "my-dog", "nobody", "your-dog", "-n", namespace)
    assert deleted.exit_code == 1, "one does not exist"
    assert deleted.stderr == f"Error: job nobody does not exist in {namespace} namespace\n"
    lines = [f'dreamboothjob.dreambooth.dev "{n}" deleted from {namespace} namespace' for n in ("my-dog", "your-dog")]
    assert deleted.stdout.splitlines() == lines
    assert plane.get("dbj", "-n", namespace)["items"] == []


def test_delete_waits_for_finalizers(plane: ControlPlane, namespace: str) -> None:
    create(plane, namespace)
    keep = json.dumps({"metadata": {"finalizers": ["dreambooth.dev/test"]}})
    plane.kubectl("patch", "dbj", "my-dog", "-n", namespace, "--type=merge", "-p", keep)
    assert run(plane, "delete", "my-dog", "-n", namespace).exit_code == 0
    assert run(plane, "wait", "my-dog", "--for=delete", "--timeout=0", "-n", namespace).exit_code == 1
    done = threading.Timer(0.5, plane.kubectl, ("patch", "dbj", "my-dog", "-n", namespace, "--type=merge", "-p"), {})
    done.args = (*done.args, '{"metadata": {"finalizers": null}}')
    done.start()
    assert run(plane, "delete", "my-dog", "--wait", "-n", namespace).exit_code == 0
    assert plane.get("dbj", "-n", namespace)["items"] == []
    assert run(plane, "wait", "my-dog", "--for=delete", "-n", namespace).exit_code == 0


def test_wait(plane: ControlPlane, namespace: str) -> None:
    create(plane, namespace, phase="Running", message="step 5")
    late = run(plane, "wait", "my-dog", "--for=condition=Succeeded", "--timeout=0", "-n", namespace)
    assert late.exit_code == 1
    assert (
        late.output == "Error: timed out waiting for job my-dog; phase Running: step 5; to wait longer, set --timeout\n"
    )
    assert run(plane, "wait", "my-dog", "--for=phase=running", "--timeout=0", "-n", namespace).exit_code == 0
    condition = {"type": "Succeeded", "status": "True", "reason": "Done", "lastTransitionTime": "2026-01-01T00:00:00Z"}
    change = {"phase": "Succeeded", "message": "done", "conditions": [condition]}
    threading.Timer(0.5, set_status, (plane, namespace, "my-dog"), change).start()
    met = run(plane, "wait", "my-dog", "--for=condition=succeeded", "--timeout=1m", "-n", namespace)
    assert met.output == "dreamboothjob.dreambooth.dev/my-dog condition met\n"
    never = run(plane, "wait", "my-dog", "--for=condition=Failed", "--timeout=1h", "-n", namespace)
    assert never.output == "Error: job my-dog finished without reaching condition failed; phase Succeeded: done\n"


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("delete", Wanted("delete")),
        ("condition=Ready", Wanted("condition", "ready", "true")),
        ("condition=Queued=False", Wanted("condition", "queued", "false")),
        ("phase=Running", Wanted("phase", "running")),
    ],
)
def test_what_to_wait_for(text: str, wanted: Wanted) -> None:
    assert parse_wanted(text) == wanted


@pytest.mark.parametrize("text", ["", "condition", "condition=", "phase=Runing", "Succeeded", "delete=1"])
def test_unknown_things_to_wait_for_are_rejected(text: str) -> None:
    with pytest.raises(ValueError, match="is none of condition=TYPE"):
        parse_wanted(text)


def test_conditions_match_type_and_status() -> None:
    job = {"status": {"conditions": [{"type": "Queued", "status": "False"}]}}
    assert is_met(job, Wanted("condition", "queued", "false"))
    assert not is_met(job, Wanted("condition", "queued"))
    assert not is_met({}, Wanted("phase", "running"))


def test_durations() -> None:
    durations = {"30s": 30, "5m": 300, "1h30m": 5400, "0": 0, "2h": 7200, "90": 90}
    assert {text: parse_seconds(text) for text in durations} == durations
    for text in ("", "s", "-1", "1d", "1.5h", "m5"):
        with pytest.raises(ValueError, match="is not a duration"):
            parse_seconds(text)
