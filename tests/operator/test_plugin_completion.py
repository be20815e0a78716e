"""Shell completion of kubectl dreambooth, and its version."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from click.testing import CliRunner
from devcluster import ControlPlane, binary
from test_crd import MINIMAL

from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.completion import completions

ROOT = Path(__file__).resolve().parents[2]
SCRIPTS: dict[str, str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
PROGRAMS = ("kubectl-dreambooth", "kubectl_complete-dreambooth")


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A PATH with both programs of the plugin, which are installed from pyproject.toml otherwise."""
    for name in PROGRAMS:
        module, _, function = SCRIPTS[name].partition(":")
        program = tmp_path / name
        program.write_text(f"#!/bin/sh\nexec {sys.executable} -c 'import {module} as m; m.{function}()' \"$@\"\n")
        program.chmod(0o755)
    return f"{tmp_path}:{os.environ['PATH']}"


def test_kubectl_completes_the_plugin(plane: ControlPlane, namespace: str, path: str) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))

    def kubectl(*words: str) -> list[str]:
        environment = {**os.environ, "PATH": path, "KUBECONFIG": str(plane.kubeconfig)}
        command = [str(binary("kubectl")), "__complete", "dreambooth", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    assert kubectl("li") == ["list\tList jobs, or show one.", ":4"]
    assert kubectl("status", "-n", namespace, "") == ["my-dog", ":4"]
    assert kubectl("status", "-n", namespace[:6]).count(namespace) == 1
    local = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "LocalDreamBoothRuntime",
        "metadata": {"name": "own", "namespace": namespace},
        "spec": {"parent": "default"},
    }
    plane.apply(local)
    assert kubectl("create", "-n", namespace, "--runtime", "ldbr/") == ["ldbr/own", ":4"]


def test_options_values_and_folders_are_completed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KUBECONFIG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    assert completions(["list", "-o", "js"]) == ["json", ":4"]
    assert completions(["wait", "x", "--ti"])[0].startswith("--timeout\tHow long")
    assert completions(["create", "x", "--images", ""]) == [":16"]
    assert completions(["status", ""]) == [":4"], "no cluster, no candidates, no error"
    config = tmp_path / "config"
    config.write_text("{contexts: [{name: prod}, {name: dev}], current-context: dev}")
    assert completions(["--kubeconfig", str(config), "status", "--context", "p"]) == ["prod", ":4"]
    assert completions(["--kubeconfig", ""]) == [":0"]


def test_version_names_the_operator_too(plane: ControlPlane, namespace: str) -> None:
    labels = {"app.kubernetes.io/name": "dreambooth-operator", "app.kubernetes.io/version": "9.8.7"}
    container = {"name": "operator", "image": "operator:1"}
    template = {"metadata": {"labels": labels}, "spec": {"containers": [container]}}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": "operator", "namespace": namespace, "labels": labels},
        "spec": {"replicas": 0, "selector": {"matchLabels": labels}, "template": template},
    }
    plane.apply(deployment)
    ours = f"kubectl-dreambooth, version {version('dreambooth-operator')}\n"
    shown = CliRunner().invoke(cli, ["--version", "--kubeconfig", str(plane.kubeconfig)])
    assert shown.output == f"{ours}dreambooth-operator, version 9.8.7, in namespace {namespace}\n"
    stranger = plane.kubeconfig_for("stranger", "/CN=stranger")
    refused = CliRunner().invoke(cli, ["--version", "--kubeconfig", str(stranger)])
    assert (refused.exit_code, refused.stdout) == (0, ours)
    assert refused.stderr.startswith("The operator's version is unknown: deployments.apps is forbidden")


def test_without_a_command_the_help_is_shown() -> None:
    shown = CliRunner().invoke(cli, [])
    assert (shown.exit_code, shown.stdout) == (2, "")
    assert "Create, inspect and control DreamBoothJobs." in shown.stderr
