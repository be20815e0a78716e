"""The krew manifest of the kubectl plugin: what krew's own validation requires, and the archive it names."""

from __future__ import annotations

import hashlib
import re
import subprocess
import tarfile
import tomllib
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
FOLDER = ROOT / "packaging" / "krew"
MANIFEST = FOLDER / "dreambooth.yaml"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def check(manifest: dict[str, Any]) -> dict[str, Any]:
    """The rules of krew's internal/index/validation; returns the only platform."""
    assert manifest["apiVersion"] == "krew.googlecontainertools.github.com/v1alpha2"
    assert manifest["kind"] == "Plugin"
    assert manifest["metadata"]["name"] == MANIFEST.stem, "the command is kubectl dreambooth"
    spec = manifest["spec"]
    assert set(spec) == {"version", "homepage", "shortDescription", "description", "caveats", "platforms"}
    assert spec["version"] == f"v{VERSION}"
    assert len(spec["shortDescription"]) <= 50
    assert "\n" not in spec["shortDescription"]
    (platform,) = spec["platforms"]
    assert set(platform) == {"selector", "uri", "sha256", "bin"}
    assert re.fullmatch(r"[a-f0-9]{64}", platform["sha256"])
    assert {e["key"] for e in platform["selector"]["matchExpressions"]} <= {"os", "arch"}
    assert platform["uri"].endswith(f"/releases/download/v{VERSION}/kubectl-dreambooth.tar.gz")
    return platform


def test_manifest_is_valid_and_has_the_version_of_the_project() -> None:
    check(yaml.safe_load(MANIFEST.read_text()))


def test_archive_has_the_program_and_the_digest_of_the_manifest(tmp_path: Path) -> None:
    wheel = tmp_path / f"dreambooth_operator-{VERSION}-py3-none-any.whl"
    wheel.write_bytes(b"wheel")
    out = tmp_path / "dist"
    digests: set[str] = set()
    for _ in range(2):
        subprocess.run([FOLDER / "build", wheel, "someone/dreambooth", out], check=True)
        platform = check(yaml.safe_load((out / "dreambooth.yaml").read_text()))
        archive = out / "kubectl-dreambooth.tar.gz"
        assert platform["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
        digests.add(platform["sha256"])
    assert len(digests) == 1, "the second build gives the same archive"
    assert platform["uri"].startswith("https://github.com/someone/dreambooth/releases/")
    with tarfile.open(archive) as opened:
        members = {member.name: member.mode for member in opened}
    assert set(members) == {platform["bin"], "LICENSE", wheel.name}
    assert members[platform["bin"]] & 0o111


def test_build_refuses_several_wheels(tmp_path: Path) -> None:
    """A glob of wheels of several versions would shift the other arguments."""
    wheels = ["dist/dreambooth_operator-1.whl", "dist/dreambooth_operator-2.whl"]
    refused = subprocess.run(
        [FOLDER / "build", *wheels, "someone/dreambooth", tmp_path / "dist"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (refused.returncode, refused.stderr) == (2, f"Usage: {FOLDER / 'build'} WHEEL REPOSITORY FOLDER\n")
    assert not (tmp_path / "dist").exists()


def test_program_runs_the_wheel_beside_it(tmp_path: Path) -> None:
    """krew links to the program from another folder. A fake uv prints its arguments."""
    installed = tmp_path / "store"
    installed.mkdir()
    (installed / "kubectl-dreambooth").write_bytes((FOLDER / "kubectl-dreambooth").read_bytes())
    (installed / "kubectl-dreambooth").chmod(0o755)
    (installed / "dreambooth_operator-1.0.0-py3-none-any.whl").touch()
    link = tmp_path / "kubectl-dreambooth"
    link.symlink_to(installed / "kubectl-dreambooth")
    (tmp_path / "bin").mkdir()
    uv = tmp_path / "bin" / "uv"

    def run() -> subprocess.CompletedProcess[str]:
        path = {"PATH": f"{tmp_path / 'bin'}:/usr/bin:/bin"}
        return subprocess.run([link, "list", "a b"], env=path, capture_output=True, text=True, check=False)

    assert "uv was not found" in run().stderr
    uv.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    uv.chmod(0o755)
    wheel = f"dreambooth-operator[plugin] @ file://{installed}/dreambooth_operator-1.0.0-py3-none-any.whl"
    requires = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["requires-python"]
    python = ["--python", requires]
    assert run().stdout.splitlines() == ["tool", "run", *python, "--from", wheel, "kubectl-dreambooth", "list", "a b"]
