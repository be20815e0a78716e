"""Which files, context and namespace apply, by the rules of kubectl."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import yaml

from dreambooth_operator.machinery.connection import find_connection
from dreambooth_operator.machinery.kubeconfig import KubeconfigError, read_kubeconfig


def write(path: Path, *contexts: str, current: str = "", **more: Any) -> Path:
    """A kubeconfig. A context is its name, or name/namespace."""
    entries = []
    for name, _, namespace in (context.partition("/") for context in contexts):
        context = {"cluster": name, "user": name} | ({"namespace": namespace} if namespace else {})
        entries.append({"name": name, "context": context})
    clusters = [{"name": e["name"], "cluster": {"server": f"https://{e['name']}"}} for e in entries]
    document = {"contexts": entries, "clusters": clusters, **more}
    document.setdefault("users", [{"name": e["name"], "user": {}} for e in entries])
    path.write_text(yaml.safe_dump(document | ({"current-context": current} if current else {})))
    return path


def test_namespace_is_that_of_the_current_context(tmp_path: Path) -> None:
    path = write(tmp_path / "config", "prod/team-a", "dev", current="prod")
    found = read_kubeconfig(str(path))
    assert (found.context, found.namespace, found.contexts) == ("prod", "team-a", ("prod", "dev"))
    assert read_kubeconfig(str(path), "dev").namespace == "default"


async def test_first_of_several_files_has_precedence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = write(tmp_path / "first", "dev/mine", current="dev")
    second = write(tmp_path / "second", "dev/other", "prod/live", current="prod")
    empty = tmp_path / "empty"
    empty.touch()
    missing = tmp_path / "missing"
    monkeypatch.setenv("KUBECONFIG", os.pathsep.join(map(str, (missing, empty, first, "", second))))
    found = read_kubeconfig()
    assert (found.context, found.namespace, found.contexts) == ("dev", "mine", ("dev", "prod"))
    assert (await find_connection()).host == "https://dev"
    connection = await find_connection(context="prod")
    assert (connection.host, connection.namespace) == ("https://prod", "live"), "a context of the second file"


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("", "there is no kubeconfig at {path}; get one from"),
        ("a: [", "the kubeconfig {path} is not valid YAML (line 1); correct or replace the file"),
        ("- a", "the kubeconfig {path} is not a mapping; correct or replace the file"),
        ("a: 1", "the kubeconfig {path} has no current context; select one with --context (it has: none)"),
        ("{contexts: [{name: a}], current-context: b}", "has no context 'b'; select one with --context (it has: a)"),
        (
            "{contexts: [{name: a, context: b}], current-context: a}",
            "the context 'a' of the kubeconfig {path} is not a",
        ),
        ("{contexts: [{name: a}], current-context: a}", "the context 'a' of the kubeconfig {path} cannot be used: "),
    ],
)
async def test_unusable_files_are_one_sentence(tmp_path: Path, content: str, sentence: str) -> None:
    path = tmp_path / "config"
    path.write_text(content)
    with pytest.raises(KubeconfigError) as caught:
        await find_connection(str(path))
    assert sentence.replace("{path}", str(path)) in str(caught.value)
    assert "\n" not in str(caught.value)


async def test_context_without_a_user_is_one_sentence(tmp_path: Path) -> None:
    path = write(tmp_path / "config", "a", current="a", users=[])
    with pytest.raises(KubeconfigError, match="cannot be used: its cluster or its user is missing or incomplete; corr"):
        await find_connection(str(path))


async def test_missing_certificates_are_one_sentence(tmp_path: Path) -> None:
    cluster = {"server": "https://a", "certificate-authority": str(tmp_path / "ca.crt")}
    path = write(tmp_path / "config", "a", current="a", clusters=[{"name": "a", "cluster": cluster}])
    with pytest.raises(KubeconfigError, match=r"cannot be used: .*ca\.crt"):
        await find_connection(str(path))


def test_files_that_do_not_exist_are_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KubeconfigError, match="there is no kubeconfig at /none; correct --kubeconfig"):
        read_kubeconfig("/none")
    with pytest.raises(KubeconfigError, match="cannot be read: Is a directory"):
        read_kubeconfig(str(tmp_path))
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("KUBECONFIG", raising=False)
    with pytest.raises(KubeconfigError, match=f"there is no kubeconfig at {tmp_path}/.kube/config; get one"):
        read_kubeconfig()
