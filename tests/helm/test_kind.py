"""The files of the kind recipe, as far as they can be checked without Docker."""

from __future__ import annotations

import os
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml
from devcluster import helm

from dreambooth_api.runtime import RuntimeSpec

ROOT = Path(__file__).resolve().parents[2]
KIND = ROOT / "packaging" / "kind"
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_values_fit_the_chart_and_the_api() -> None:
    text = helm(
        None, "template", "x", str(ROOT / "charts" / "dreambooth-operator"), f"--values={KIND / 'values.yaml'}",
        "--api-versions=dreambooth.dev/v1alpha1/DreamBoothRuntime",
    )  # fmt: skip
    objects = {obj["kind"]: obj for obj in yaml.safe_load_all(text) if obj}
    container = objects["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    assert (container["image"], container["imagePullPolicy"]) == (f"dreambooth-operator:{VERSION}", "Never")
    runtime = RuntimeSpec.model_validate(objects["DreamBoothRuntime"]["spec"])
    assert runtime.image == f"dreambooth-trainer:{VERSION}"
    claim = yaml.safe_load((KIND / "volume.yaml").read_text())
    assert runtime.storage.claim_name == claim["metadata"]["name"]
    job = yaml.safe_load((ROOT / "manifests" / "samples" / "sprites.yaml").read_text())
    assert job["spec"]["runtimeRef"]["name"] == objects["DreamBoothRuntime"]["metadata"]["name"]


@pytest.mark.unit
def test_missing_programs_are_listed(tmp_path: Path) -> None:
    for name in ("bash", "dirname", "readlink"):
        (tmp_path / name).symlink_to(Path("/bin") / name)
    done = subprocess.run(
        [str(KIND / "up")], env={**os.environ, "PATH": str(tmp_path)}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "Not on PATH: docker kind kubectl helm" in done.stderr
