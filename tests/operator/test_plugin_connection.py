"""Where kubectl dreambooth looks, and what it says if it finds nothing there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from devcluster import ControlPlane
from test_crd import MINIMAL

from dreambooth_operator.kubectl_plugin.cli import cli
from dreambooth_operator.kubectl_plugin.explain import explain_api_error
from dreambooth_operator.machinery.client import ApiError
from dreambooth_operator.machinery.resources import Resource


def invoke(*arguments: str, **environment: str) -> Result:
    return CliRunner(env={"KUBECONFIG": None, "HOME": "/nonexistent", **environment}).invoke(cli, arguments)


def error_of(result: Result) -> str:
    """The sentence that a command ended with."""
    assert (result.exit_code, type(result.exception)) == (1, SystemExit), result.output
    assert result.output.startswith("Error: ")
    assert result.output.count("\n") == 1, "one line"
    return result.output.removeprefix("Error: ").strip()


def config_with(plane: ControlPlane, path: Path, **changes: Any) -> str:
    """A copy of the administrator's kubeconfig, with changes to its context, cluster and user."""
    document = yaml.safe_load(plane.kubeconfig.read_text())
    document["contexts"][0]["context"].update(changes.get("context", {}))
    document["clusters"][0]["cluster"].update(changes.get("cluster", {}))
    if "user" in changes:
        document["users"][0]["user"] = changes["user"]
    path.write_text(yaml.safe_dump(document))
    return str(path)


def test_the_context_supplies_the_namespace(plane: ControlPlane, namespace: str, tmp_path: Path) -> None:
    plane.kubectl("create", "-n", namespace, "-f", "-", stdin=yaml.safe_dump(MINIMAL))
    here = config_with(plane, tmp_path / "here", context={"namespace": namespace})
    assert f"{namespace}/my-dog" in invoke("status", "my-dog", KUBECONFIG=here).output
    assert f"{namespace}/my-dog" in invoke("--kubeconfig", here, "status", "my-dog").output
    elsewhere = config_with(plane, tmp_path / "elsewhere", context={"namespace": "kube-system"})
    assert '"my-dog" not found; to list jobs' in error_of(invoke("status", "my-dog", KUBECONFIG=elsewhere))
    for order in (("-n", namespace, "status", "my-dog"), ("-n", "x", "status", "my-dog", "-n", namespace)):
        assert f"{namespace}/my-dog" in invoke(*order, KUBECONFIG=elsewhere).output, "the command's option wins"


def test_a_missing_kubeconfig_is_one_sentence() -> None:
    assert error_of(invoke("status", "my-dog")) == (
        "there is no kubeconfig at /nonexistent/.kube/config; get one from your cluster's administrator or provider, "
        "and set --kubeconfig or KUBECONFIG to its path"
    )
    assert "there is no kubeconfig at /none" in error_of(invoke("events", "my-dog", "--kubeconfig", "/none"))


def test_a_server_that_does_not_respond_is_one_sentence(plane: ControlPlane, tmp_path: Path) -> None:
    dead = config_with(plane, tmp_path / "dead", cluster={"server": "https://127.0.0.1:1"})
    message = error_of(invoke("status", "my-dog", KUBECONFIG=dead))
    assert message.startswith("the API server https://127.0.0.1:1 does not respond: ")
    assert message.endswith("check that the cluster runs and is reachable from here, or select another with --context")


def test_wrong_credentials_are_one_sentence(plane: ControlPlane, tmp_path: Path) -> None:
    for user in ({"token": "expired"}, {}):
        wrong = config_with(plane, tmp_path / "wrong", user=user)
        assert "the API server does not accept your credentials" in error_of(
            invoke("status", "my-dog", KUBECONFIG=wrong)
        )


def test_a_user_without_rights_learns_which_role_is_missing(plane: ControlPlane, namespace: str) -> None:
    nobody = str(plane.kubeconfig_for("nobody", "/CN=nobody"))
    for arguments in (("status", "my-dog"), ("events", "my-dog"), ("logs", "my-dog"), ("suspend", "my-dog")):
        message = error_of(invoke(*arguments, "-n", namespace, "--kubeconfig", nobody))
        assert 'User "nobody" cannot' in message
        assert message.endswith(
            "ask an administrator for the role edit or view in this namespace, or select one with -n"
        )


def test_a_user_without_rights_in_all_namespaces_is_told_to_select_one(plane: ControlPlane) -> None:
    message = error_of(invoke("list", "-A", "--kubeconfig", str(plane.kubeconfig_for("nobody", "/CN=nobody"))))
    assert 'User "nobody" cannot list resource' in message
    assert message.endswith("select one namespace with -n, or ask an administrator for rights in all of them")


def test_a_cluster_without_the_crd_is_one_sentence(plane: ControlPlane, namespace: str) -> None:
    """The API server's 404 for a resource type that does not exist, from a path that no CRD serves."""
    with pytest.MonkeyPatch.context() as patch:
        unknown = Resource("nothing.dreambooth.dev", "v1alpha1", "dreamboothjobs", "DreamBoothJob")
        patch.setattr("dreambooth_operator.kubectl_plugin.show.JOBS", unknown)
        message = error_of(invoke("status", "my-dog", "-n", namespace, "--kubeconfig", str(plane.kubeconfig)))
    assert message.startswith("the cluster has no dreamboothjobs.dreambooth.dev; install the operator with its CRDs")


def test_other_errors_keep_the_servers_words() -> None:
    assert explain_api_error(ApiError(503, "ServiceUnavailable", "etcd is down.")) == (
        "the API server cannot answer now (503: etcd is down); try again later"
    )
    assert explain_api_error(ApiError(422, "Invalid", "spec.x: no")) == "spec.x: no"
    assert explain_api_error(ApiError(400, "BadRequest", "")) == "BadRequest (400): "
