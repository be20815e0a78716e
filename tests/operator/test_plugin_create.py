"""kubectl dreambooth create against the real API server."""

from __future__ import annotations

import base64
import json
import threading
import time
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane, ProcessError
from PIL import Image

from dreambooth_operator.kubectl_plugin.cli import cli


@pytest.fixture
def photos(tmp_path: Path) -> str:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("a", "b"):
        Image.new("RGB", (300, 200), "red").save(folder / f"{name}.jpg")
    return str(folder)


def create(plane: ControlPlane, namespace: str, photos: str, *more: str, kubeconfig: Path | None = None) -> Result:
    options = ["--class", "dog", "--set", "output.uri=s3://models/dog", "-n", namespace]
    command = ["create", "my-dog", "--images", photos, *options, "--kubeconfig", str(kubeconfig or plane.kubeconfig)]
    return CliRunner().invoke(cli, [*command, *more])


def config_maps(plane: ControlPlane, namespace: str) -> list[str]:
    found = plane.get("configmaps", "-n", namespace)["items"]
    return [obj["metadata"]["name"] for obj in found if obj["metadata"]["name"] != "kube-root-ca.crt"]


def test_photos_belong_to_the_job(plane: ControlPlane, namespace: str, photos: str) -> None:
    created = create(plane, namespace, photos)
    lines = created.output.splitlines()
    assert lines[0].startswith("configmap/my-dog-photos created: 2 photos, ")
    assert lines[1] == "dreamboothjob.dreambooth.dev/my-dog created"
    job = plane.get("dbj", "my-dog", "-n", namespace)
    assert job["spec"]["subject"]["images"] == {"configMap": {"name": "my-dog-photos"}}
    config_map = plane.get("configmap", "my-dog-photos", "-n", namespace)
    assert base64.b64decode(config_map["binaryData"]["a.jpg"]).startswith(b"\xff\xd8")
    again = create(plane, namespace, photos)
    assert again.output == (
        "Error: the ConfigMap my-dog-photos already exists; if no job uses it, run kubectl delete configmap "
        f"my-dog-photos -n {namespace}; otherwise use another name\n"
    )
    plane.kubectl("delete", "dbj", "my-dog", "-n", namespace)
    deadline = time.monotonic() + 60
    while config_maps(plane, namespace) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert config_maps(plane, namespace) == [], "the garbage collector deleted it"


def test_a_job_that_the_server_rejects_leaves_no_photos(plane: ControlPlane, namespace: str, photos: str) -> None:
    """The rule is the server's alone: jobs of a cluster have no local output."""
    rejected = create(plane, namespace, photos, "--set", "output.uri=out/dog")
    assert rejected.exit_code == 1
    assert "spec.output: Invalid value: on a cluster, uri must be a folder in s3:" in rejected.output
    assert config_maps(plane, namespace) == []


def test_photos_remain_if_the_user_may_not_change_them(plane: ControlPlane, namespace: str, photos: str) -> None:
    rules = ["--verb=create", "--resource=configmaps,dreamboothjobs.dreambooth.dev"]
    plane.kubectl("create", "role", "author", "-n", namespace, *rules)
    plane.kubectl("create", "rolebinding", "author", "-n", namespace, "--role=author", "--user=author")
    author = plane.kubeconfig_for("author", "/CN=author")
    created = create(plane, namespace, photos, kubeconfig=author)
    assert created.exit_code == 0
    assert created.stderr.startswith("Warning: the ConfigMap is not deleted with the job (")
    assert config_maps(plane, namespace) == ["my-dog-photos"]


def test_dry_run_output_can_be_created(plane: ControlPlane, namespace: str, photos: str) -> None:
    shown = create(plane, namespace, photos, "--dry-run=client", "-o", "yaml")
    with pytest.raises(ProcessError, match="not found"):
        plane.get("dbj", "my-dog", "-n", namespace)
    plane.kubectl("create", "-f", "-", stdin=shown.stdout)
    assert len(list(yaml.safe_load_all(shown.stdout))) == 2
    assert plane.get("dbj", "my-dog", "-n", namespace)["spec"]["subject"]["class"] == "dog"


@pytest.mark.parametrize(("phase", "code"), [("Failed", 1), ("Succeeded", 0)])
def test_following_ends_with_the_job(plane: ControlPlane, namespace: str, phase: str, code: int) -> None:
    status = json.dumps({"status": {"phase": phase, "message": "the end"}})

    def finish() -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            try:
                plane.kubectl(
                    *("patch", "dbj", "my-dog", "-n", namespace, "--subresource=status", "--type=merge", "-p", status)
                )
                return
            except ProcessError:  # not created yet
                time.sleep(0.2)

    threading.Thread(target=finish, daemon=True).start()
    followed = create(plane, namespace, "s3://photos/dog", "--follow")
    assert followed.exit_code == code
    assert "the end" in followed.output
