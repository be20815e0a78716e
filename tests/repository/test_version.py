"""One version: of the package, the chart, the images that manifests name, and the documentation."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
FILES = ("charts", "manifests", "docs", "packaging", "README.md")


def places() -> re.Pattern[str]:
    """What `make version` replaces."""
    makefile = (ROOT / "Makefile").read_text()
    (pattern,) = re.findall(r"^VERSIONED := (.+)$", makefile, re.MULTILINE)
    return re.compile(pattern, re.MULTILINE)


def test_every_place_has_the_version_of_the_package() -> None:
    found = {}
    for name in FILES:
        path = ROOT / name
        for file in [path] if path.is_file() else path.rglob("*"):
            if file.suffix in {".yaml", ".md"}:
                for match in places().finditer(file.read_text()):
                    found.setdefault(match.group().removeprefix(match.group(1)), set()).add(str(file.relative_to(ROOT)))
    assert set(found) == {VERSION}, f"write `make version VERSION={VERSION}`: {found}"
    chart, manifest = "charts/dreambooth-operator/Chart.yaml", "manifests/operator/operator.yaml"
    assert {chart, manifest, "manifests/samples/runtime-default.yaml"} <= found[VERSION]


def test_the_chart_has_both_versions() -> None:
    chart = (ROOT / "charts" / "dreambooth-operator" / "Chart.yaml").read_text().splitlines()
    assert f"version: {VERSION}" in chart
    assert f"appVersion: {VERSION}" in chart


def test_the_lock_has_the_version() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (ours,) = [package for package in packages if package["name"] == "dreambooth-operator"]
    assert ours["version"] == VERSION


def test_no_other_line_of_yaml_names_the_version() -> None:
    """A new place, which the pattern of `make version` does not find."""
    for name in ("charts", "manifests", "packaging"):
        for file in (ROOT / name).rglob("*.yaml"):
            rest = places().sub("", file.read_text())
            assert not re.search(rf"(?<![\d.]){re.escape(VERSION)}(?![\d.])", rest), file


@pytest.mark.parametrize("program", ["dreambooth", "kubectl-dreambooth"])
def test_the_command_prints_the_installed_version(program: str, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / program), "--version"]
    # Without a kubeconfig: the plugin would also print the operator's version.
    environment = {**os.environ, "HOME": str(tmp_path), "KUBECONFIG": ""}
    printed = subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout
    assert printed == f"{program}, version {VERSION}\n"


def test_the_sample_of_a_ray_cluster_has_the_version_of_ray_in_the_image() -> None:
    packages = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    (locked,) = [package["version"] for package in packages if package["name"] == "ray"]
    sample = yaml.safe_load((ROOT / "manifests" / "samples" / "benchmark.yaml").read_text())
    assert sample["spec"]["rayClusterSpec"]["rayVersion"] == locked
