"""Jobs that run again with other settings or with missing files, and folders with foreign files."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

pytestmark = pytest.mark.trainer

JOB = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "pink-dog"},
    "spec": {
        "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
        "priorPreservation": {"numClassImages": 4, "sampler": {"steps": 4}},
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
    options = [word for override in sets for word in ("--set", override)]
    return dreambooth(folder, "run", "job.yaml", "--out", out, "--store", "store", *options)


def evaluation_images(folder: Path) -> set[Path]:
    return set((folder / "out" / "work" / "evaluation-images").rglob("*.png"))


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


def test_only_images_of_changed_prompts_are_generated(job: Path) -> None:
    before = evaluation_images(job)
    mtimes = {path: path.stat().st_mtime_ns for path in before}
    code, text = run(job, "evaluation.prompts=['a {} in the snow']")
    assert code == 0, text
    new = evaluation_images(job) - before
    assert len(new) == 2, "one of the base model, one of the trained model"
    assert {path: path.stat().st_mtime_ns for path in before} == mtimes
    scores = json.loads((job / "out" / "model" / "scores.json").read_text())
    assert [row["prompt"] for row in scores["after"]["prompts"]] == ["a dog in the snow"]


@pytest.mark.long
def test_augmented_images_are_encoded_once_and_trained_on(job: Path) -> None:
    code, text = run(job, "training.randomCrop=true", "training.randomFlip=true")
    assert code == 0, text
    assert text.count("already complete") == 2, "Prepare and ClassImages"
    assert "samples 16 world size 1" in text
    with safe_open(job / "out" / "work" / "latents.safetensors", "numpy") as latents:
        assert latents.get_slice("instance_images.images.latent_mean").get_shape()[0] == 5 * 8 * 2
    report = (job / "out" / "report.html").read_text()
    assert "<dt>augmentation</dt><dd>random crop, random flip</dd>" in report
    assert "<dt>samples</dt><dd>16 instance images</dd>" in report


def test_the_report_is_regenerated_from_the_folder_alone(job: Path) -> None:
    report = job / "out" / "report.html"
    before = report.read_text()
    report.unlink()
    (job / "job.yaml").unlink()
    code, text = dreambooth(job.parent, "report", str(job / "out"))
    assert code == 0, text
    after = report.read_text()
    assert after.count("data:image/png;base64,") == before.count("data:image/png;base64,") > 20
    assert "DINO" in after
    code, text = dreambooth(job.parent, "report", str(job / "out"), "--no-photos")
    assert code == 0, text
    public = (job / "out" / "model" / "report.html").read_text()
    for page in (report.read_text(), public):
        assert page.count("data:image/png;base64,") == before.count("data:image/png;base64,") - 5


def test_the_report_of_an_unfinished_job_is_rejected(job: Path, tmp_path: Path) -> None:
    code, text = dreambooth(job, "report", str(tmp_path))
    assert code == 2
    assert "is not the folder of a job; pass the folder that `dreambooth run --out` created" in text
    (job / "out" / "work" / "phases" / "Evaluate.json").unlink()
    code, text = dreambooth(job, "report", "out")
    assert code == 2
    assert "has no finished evaluation; run the job again" in text


@pytest.mark.long
def test_earlier_scores_are_not_used_if_the_evaluation_is_disabled(job: Path) -> None:
    assert "DINO" in (job / "out" / "report.html").read_text()
    code, text = run(job, "evaluation.enabled=false")
    assert code == 0, text
    assert not (job / "out" / "model" / "scores.json").exists()
    assert "DINO" not in (job / "out" / "report.html").read_text()


def test_deleted_class_images_are_not_needed_once_they_are_encoded(job: Path) -> None:
    shutil.rmtree(job / "store")
    code, text = run(job, "output.formats=[diffusers]")
    assert code == 0, text
    assert text.count("already complete") == 5
    assert not list(job.glob("store/**/*.png"))
    assert not (job / "out" / "model" / "pink-dog.safetensors").exists()


@pytest.mark.long
def test_deleted_class_images_are_generated_again_if_they_are_needed(job: Path) -> None:
    shutil.rmtree(job / "store")
    (job / "out" / "work" / "latents.safetensors").unlink()
    code, text = run(job)
    assert code == 0, text
    assert len(list(job.glob("store/**/*.png"))) == 4
    assert text.count("already complete") == 4, "prepare, train, evaluate and publish"


def test_deleted_evaluation_images_are_generated_again(job: Path) -> None:
    shutil.rmtree(job / "out" / "work" / "evaluation-images")
    code, text = run(job, "output.formats=[diffusers]")
    assert code == 0, text
    assert evaluation_images(job)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_foreign_files_is_rejected_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# a comment\n" + yaml.safe_dump(JOB))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    before = contents(tmp_path)
    code, text = run(tmp_path, out=".")
    assert code == 2, text
    assert (
        "contains job.yaml, model, and is not the folder of a job; use an empty folder, or one that does not exist"
        in text
    )
    assert contents(tmp_path) == before


def test_foreign_files_in_the_model_folder_are_not_overwritten(job: Path) -> None:
    (job / "out" / "model" / "notes.txt").write_text("mine")
    (job / "site").mkdir()
    (job / "site" / "index.html").write_text("mine")
    before = contents(job)
    code, text = run(job, f"output.uri=file://{job}/site", "output.formats=[diffusers]")
    assert code == 2, text
    assert "out/model': contains notes.txt, which this job did not create and would overwrite" in " ".join(text.split())
    assert "site': contains index.html, and is not the folder of a job" in " ".join(text.split())
    assert contents(job) == before


def test_erase_deletes_only_files_of_the_job(job: Path) -> None:
    (job / "out" / "model" / "notes.txt").write_text("mine")
    (job / "other.yaml").write_text(yaml.safe_dump({**JOB, "metadata": {"name": "another-dog"}}))
    before = contents(job)
    code, text = dreambooth(job, "erase", "other.yaml", "--out", "out")
    assert code == 2
    assert "is the folder of job default/pink-dog" in text
    assert contents(job) == before
    code, text = dreambooth(job, "erase", "job.yaml", "--out", "out")
    assert code == 0
    assert "except model/notes.txt: not created by this job" in " ".join(text.split())
    assert contents(job / "out") == {"model/notes.txt": b"mine"}


def test_images_of_an_earlier_call_are_kept(job: Path) -> None:
    command = ("generate", "--model", "out", "--count", "2", "--steps", "1", "--prompt")
    assert dreambooth(job, *command, "a sks dog")[0] == 0
    before = contents(job / "images")
    assert dreambooth(job, *command, "a dog")[0] == 0
    after = contents(job / "images")
    assert sorted(after) == ["00-000.png", "00-001.png", "01-000.png", "01-001.png"]
    assert {name: after[name] for name in before} == before
