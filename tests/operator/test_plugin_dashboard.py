"""kubectl dreambooth dashboard: the port-forward, and Ray's token."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane, binary
from test_crd import MINIMAL

from dreambooth_operator.controller.children.pods import container_security_context, pod_security_context
from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.dashboard import token_reference

ENV = [{"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "ray-1", "key": "auth_token"}}}]


def dashboard(plane: ControlPlane, namespace: str, *more: str, user: Path | None = None) -> Result:
    command = ["dashboard", "my-dog", "-n", namespace, "--kubeconfig", str(user or plane.kubeconfig), *more]
    return CliRunner().invoke(cli, command)


def start_head(plane: ControlPlane, namespace: str) -> None:
    """A running head pod as KubeRay makes it, and the Secret with its token."""
    container = {"name": "ray-head", "image": "ray:1", "env": ENV, "securityContext": container_security_context()}
    labels = {"dreambooth.dev/job": "my-dog", "ray.io/node-type": "head", "ray.io/cluster": "my-dog-1"}
    plane.apply(
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "ray-1", "namespace": namespace},
         "stringData": {"auth_token": "secret-word"}},
        {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "head-1", "namespace": namespace, "labels": labels},
         "spec": {"containers": [container], "securityContext": pod_security_context()}},
    )  # fmt: skip
    running = ("--subresource=status", "--type=merge", "-p", '{"status": {"phase": "Running"}}')
    plane.kubectl("patch", "pod", "head-1", "-n", namespace, *running)


@pytest.fixture
def forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kubectl that writes its arguments to the returned file instead of forwarding a port."""
    kubectl, written = tmp_path / "kubectl", tmp_path / "arguments"
    kubectl.write_text(
        f'#!/bin/sh\ncase " $* " in *" port-forward "*) ;; *) exec {binary("kubectl")} "$@" ;; esac\n'
        f'echo "$@" > {written}\necho "Forwarding from 127.0.0.1:9000 -> 8265"\nexit 3\n'
    )
    kubectl.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    return written


def test_dashboard(plane: ControlPlane, namespace: str, forwards: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    none = dashboard(plane, namespace)
    assert none.output == "Error: job my-dog has no running head pod; its phase is Pending\n"
    start_head(plane, namespace)
    opened: list[str] = []
    monkeypatch.setattr("webbrowser.open", opened.append)
    shown = dashboard(plane, namespace, "--port=9000")
    assert shown.output.splitlines() == [
        "Ray dashboard: http://127.0.0.1:9000",
        "Token: secret-word",
        "Forwarding from 127.0.0.1:9000 -> 8265",
    ]
    assert (shown.exit_code, opened) == (3, [])
    assert forwards.read_text().split()[1:] == ["port-forward", "-n", namespace, "pod/head-1", "9000:8265"]
    dashboard(plane, namespace, "--open")
    assert opened == ["http://127.0.0.1:8265"]


def test_users_who_may_not_read_the_token_learn_where_it_is(
    plane: ControlPlane, namespace: str, forwards: Path
) -> None:
    start_head(plane, namespace)
    plane.kubectl("create", "role", "pods", "-n", namespace, "--verb=list", "--resource=pods")
    plane.kubectl("create", "rolebinding", "pods", "-n", namespace, "--role=pods", "--user=looker")
    shown = dashboard(plane, namespace, user=plane.kubeconfig_for("looker", "/CN=looker"))
    assert "Token: in key auth_token of the Secret ray-1, which you cannot read (secrets" in shown.output
    assert forwards.exists(), "the port is forwarded nevertheless"


def test_token_is_that_of_the_head_container() -> None:
    other = {"name": "sidecar", "env": ENV}
    assert token_reference({"spec": {"containers": [other, {"name": "ray-head", "env": ENV}]}}) == (
        "ray-1",
        "auth_token",
    )
    assert token_reference({"spec": {"containers": [other, {"name": "ray-head"}]}}) is None


def test_sigterm_ends_the_port_forward(tmp_path: Path) -> None:
    """A process manager sends the signal to the plugin alone."""
    kubectl, ended = tmp_path / "kubectl", tmp_path / "ended"
    kubectl.write_text(f"#!/bin/sh\ntrap 'touch {ended}; exit' TERM\necho Forwarding\nwhile :; do sleep 0.1; done\n")
    kubectl.chmod(0o755)
    program = (
        "import sys; from dreambooth_operator.kubectl_plugin.dashboard import _forward; "
        f"sys.exit(_forward([{str(kubectl)!r}], 'http://127.0.0.1:1', '', open_=False))"
    )
    with subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE, text=True) as plugin:
        assert plugin.stdout
        assert plugin.stdout.readline() == "Ray dashboard: http://127.0.0.1:1\n"
        plugin.terminate()
        assert plugin.wait(60) == 0
    assert ended.exists()


def test_missing_kubectl_is_one_sentence(
    plane: ControlPlane, namespace: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start_head(plane, namespace)
    monkeypatch.setenv("PATH", str(tmp_path))
    shown = CliRunner().invoke(cli, ["dashboard", "my-dog", "-n", namespace, "--kubeconfig", str(plane.kubeconfig)])
    assert shown.output == "Error: kubectl was not found; install it, and add its folder to PATH\n"
