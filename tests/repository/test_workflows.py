"""Files that no interpreter reads before a release: workflows, Dockerfiles, and the commands that documents name."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from devcluster import binary

ROOT = Path(__file__).resolve().parents[2]
YAML = [ROOT / ".pre-commit-config.yaml", *(ROOT / ".github").rglob("*.yml")]
DOCKERFILES = sorted((ROOT / "docker").glob("*.Dockerfile"))
COMMANDS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / ".ci" / "run", *YAML, *(ROOT / "docs").rglob("*.md")]


def bases() -> dict[str, str]:
    """The base images, by the name of their build argument."""
    lines = (ROOT / "docker" / "bases.env").read_text().splitlines()
    return dict(line.split("=", 1) for line in lines if line and not line.startswith("#"))


@pytest.mark.parametrize("file", YAML, ids=lambda file: file.name)
def test_yaml_is_a_mapping(file: Path) -> None:
    assert isinstance(yaml.safe_load(file.read_text()), dict)


@pytest.mark.integration
def test_actionlint_accepts_the_workflows() -> None:
    workflows = [str(file) for file in (ROOT / ".github" / "workflows").glob("*.yml")]
    done = subprocess.run([str(binary("actionlint")), *workflows], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


def test_the_gate_and_the_workflow_are_the_same_command() -> None:
    steps = yaml.safe_load((ROOT / ".github" / "workflows" / "ci.yml").read_text())["jobs"]["gate"]["steps"]
    assert any("bash .ci/run" in step.get("run", "") for step in steps)


def test_every_make_target_that_is_named_exists() -> None:
    targets = set(re.findall(r"^([a-z0-9-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for file in COMMANDS:
        named = set(re.findall(r"(?:^|`|run: )make ([a-z][a-z0-9-]*)", file.read_text(), re.MULTILINE))
        assert named <= targets, f"{file.relative_to(ROOT)} names targets that are not in the Makefile"


@pytest.mark.parametrize("file", DOCKERFILES, ids=lambda file: file.name)
def test_images_start_from_pinned_bases_and_the_lock(file: Path) -> None:
    text = file.read_text()
    stages = re.findall(r"^FROM (\S+)", text, re.MULTILINE)
    assert stages
    assert {f"${{{name}}}" for name in re.findall(r"^ARG (\w+)$", text, re.MULTILINE)} == set(stages)
    assert set(re.findall(r"\$\{(\w+)\}", " ".join(stages))) <= set(bases())
    assert re.findall(r"uv sync (?!--frozen --no-dev)", text) == []
    assert "pip install" not in text


def test_every_base_has_a_tag_and_a_digest() -> None:
    for image in bases().values():
        assert re.fullmatch(r"[a-z0-9./-]+:[\w.-]+@sha256:[0-9a-f]{64}", image), image


def test_every_shell_script_is_checked() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    files = [name for name in listed if name and (ROOT / name).is_file()]
    scripts = {name for name in files if re.match(rb"#!.*\b(ba)?sh\b", (ROOT / name).read_bytes())}
    (checked,) = re.findall(r"^\t\$\(BIN\)/shellcheck (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert scripts == set(checked.split())
