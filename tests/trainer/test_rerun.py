"""A job that runs again with another evaluation, without its class images, or into somebody else's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from PIL import Image, ImageChops

JOB = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "pink-dog"},
    "spec": {
        "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
        "priors": {"count": 4, "sampler": {"steps": 4}},
        "training": {"steps": 4},
        "evaluation": {"imagesPerPrompt": 1, "prompts": ["a {} on the beach"]},
    },
}


def dreambooth(folder: Path, *arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [sys.executable, "-m", "dreambooth_trainer", *arguments],
        cwd=folder,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        timeout=400,
        check=False,
    )
    return done.returncode, done.stdout


def run(folder: Path, *sets: str, out: str = "out") -> tuple[int, str]:
    options = [word for change in sets for word in ("--set", change)]
    return dreambooth(folder, "run", "job.yaml", "--out", out, "--store", "store", *options)


def pictures(folder: Path) -> set[Path]:
    return set((folder / "out" / "work" / "pictures").rglob("*.png"))


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with job.yaml, store/ and a finished job in out/."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
    code, text = run(folder)
    assert code == 0, text
    return folder


@pytest.fixture
def job(finished: Path, tmp_path: Path) -> Path:
    """A copy of the finished job."""
    return shutil.copytree(finished, tmp_path / "job", symlinks=True)


def test_changed_prompts_are_drawn_and_nothing_else(job: Path) -> None:
    before = pictures(job)
    stamps = {path: path.stat().st_mtime_ns for path in before}
    code, text = run(job, "evaluation.prompts=['a {} in the snow', 'a {} on the beach']")
    assert code == 0, text
    made = pictures(job) - before
    assert len(made) == 2, "one by the base, one by the trained model"
    assert {path: path.stat().st_mtime_ns for path in before} == stamps
    for path in made:
        beaches = [old for old in before if old.parent == path.parent and old.name.startswith("prompt-")]
        assert all(ImageChops.difference(Image.open(path), Image.open(old)).getbbox() for old in beaches)
    scores = json.loads((job / "out" / "model" / "scores.json").read_text())
    first, second = scores["after"]["prompts"]
    assert (first["prompt"], second["prompt"]) == ("a dog in the snow", "a dog on the beach")
    assert first["clip_t"] != second["clip_t"]


def test_scores_of_an_earlier_run_are_not_used_without_an_evaluation(job: Path) -> None:
    assert "DINO" in (job / "out" / "report.html").read_text()
    code, text = run(job, "evaluation.enabled=false")
    assert code == 0, text
    assert not (job / "out" / "model" / "scores.json").exists()
    assert "DINO" not in (job / "out" / "report.html").read_text()


def test_cleared_class_images_are_not_needed_once_they_are_encoded(job: Path) -> None:
    shutil.rmtree(job / "store")
    code, text = run(job, "output.formats=[diffusers]")
    assert code == 0, text
    assert text.count("done before") == 5
    assert not list(job.glob("store/**/*.png"))
    assert not (job / "out" / "model" / "pink-dog.safetensors").exists()


def test_cleared_class_images_are_drawn_again_where_they_are_needed(job: Path) -> None:
    shutil.rmtree(job / "store")
    (job / "out" / "work" / "latents.safetensors").unlink()
    code, text = run(job)
    assert code == 0, text
    assert len(list(job.glob("store/**/*.png"))) == 4
    assert text.count("done before") == 4, "prepare, train, evaluate and publish"


def test_pictures_that_were_removed_are_drawn_again(job: Path) -> None:
    shutil.rmtree(job / "out" / "work" / "pictures")
    code, text = run(job, "output.formats=[diffusers]")
    assert code == 0, text
    assert pictures(job)
