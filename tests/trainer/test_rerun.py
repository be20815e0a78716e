"""A job that runs again with another evaluation, without its class images, or into somebody else's folder."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

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
    options = [word for change in sets for word in ("--set", change)]
    return dreambooth(folder, "run", "job.yaml", "--out", out, "--store", "store", *options)


def pictures(folder: Path) -> set[Path]:
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


def test_changed_prompts_are_drawn_and_nothing_else(job: Path) -> None:
    before = pictures(job)
    stamps = {path: path.stat().st_mtime_ns for path in before}
    code, text = run(job, "evaluation.prompts=['a {} in the snow']")
    assert code == 0, text
    made = pictures(job) - before
    assert len(made) == 2, "one by the base, one by the trained model"
    assert {path: path.stat().st_mtime_ns for path in before} == stamps
    scores = json.loads((job / "out" / "model" / "scores.json").read_text())
    assert [row["prompt"] for row in scores["after"]["prompts"]] == ["a dog in the snow"]


def test_the_report_is_written_again_from_the_folder_alone(job: Path) -> None:
    report = job / "out" / "report.html"
    before = report.read_text()
    report.unlink()
    (job / "job.yaml").unlink()
    code, text = dreambooth(job.parent, "report", str(job / "out"))
    assert code == 0, text
    after = report.read_text()
    assert after.count("data:image/png;base64,") == before.count("data:image/png;base64,") > 20
    assert "DINO" in after


def test_there_is_no_report_of_a_job_that_has_not_finished(job: Path, tmp_path: Path) -> None:
    code, text = dreambooth(job, "report", str(tmp_path))
    assert code == 2
    assert "is not the folder of a job that ran; write the folder that `dreambooth run --out` made" in text
    (job / "out" / "work" / "phases" / "evaluate.json").unlink()
    code, text = dreambooth(job, "report", "out")
    assert code == 2
    assert "has no finished evaluation; run the job again" in text


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
    shutil.rmtree(job / "out" / "work" / "evaluation-images")
    code, text = run(job, "output.formats=[diffusers]")
    assert code == 0, text
    assert pictures(job)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_folder_with_files_of_somebody_else_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("# a comment\n" + yaml.safe_dump(JOB))
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "weights").write_text("mine")
    before = contents(tmp_path)
    code, text = run(tmp_path, out=".")
    assert code == 2, text
    assert "holds job.yaml, model, and no marker of a job; write an empty folder, or one that does not exist" in text
    assert contents(tmp_path) == before


def test_files_beside_a_model_are_not_replaced_with_it(job: Path) -> None:
    (job / "out" / "model" / "notes.txt").write_text("mine")
    (job / "site").mkdir()
    (job / "site" / "index.html").write_text("mine")
    before = contents(job)
    code, text = run(job, f"output.uri=file://{job}/site", "output.formats=[diffusers]")
    assert code == 2, text
    assert "out/model': holds notes.txt, which this job did not make and would replace" in " ".join(text.split())
    assert "site': holds index.html, and no model of this job" in " ".join(text.split())
    assert contents(job) == before


def test_a_job_is_erased_by_its_manifest(job: Path) -> None:
    (job / "out" / "model" / "notes.txt").write_text("mine")
    (job / "other.yaml").write_text(yaml.safe_dump({**JOB, "metadata": {"name": "another-dog"}}))
    before = contents(job)
    code, text = dreambooth(job, "erase", "other.yaml", "--out", "out")
    assert code == 2
    assert "is the folder of job default/pink-dog" in text
    assert contents(job) == before
    code, text = dreambooth(job, "erase", "job.yaml", "--out", "out")
    assert code == 0
    assert "except model/notes.txt: this job did not make that" in " ".join(text.split())
    assert contents(job / "out") == {"model/notes.txt": b"mine"}


def test_pictures_of_an_earlier_call_stay(job: Path) -> None:
    command = ("generate", "--model", "out", "--count", "2", "--steps", "1", "--prompt")
    assert dreambooth(job, *command, "a sks dog")[0] == 0
    before = contents(job / "pictures")
    assert dreambooth(job, *command, "a dog")[0] == 0
    after = contents(job / "pictures")
    assert sorted(after) == ["00-000.png", "00-001.png", "01-000.png", "01-001.png"]
    assert {name: after[name] for name in before} == before
