"""`dreambooth validate` and `plan` report what `dreambooth run` would reject in the subject's images."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from imagefiles import encoded, gradient, noise
from jobtext import JOB, spec

HEIC = b"\x00\x00\x00\x18ftypheic\x00\x00\x00\x00mif1heic"


def dreambooth(*arguments: str) -> tuple[int, str]:
    command = [sys.executable, "-m", "dreambooth_trainer", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """The folder of the job's images, beside `job.yaml`."""
    (tmp_path / "job.yaml").write_text(JOB)
    (tmp_path / "photos").mkdir()
    for name in ("0.png", "1.png", "2.png"):
        (tmp_path / "photos" / name).write_bytes(encoded(noise(seed=int(name[0]))))
    return tmp_path / "photos"


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_images_that_a_run_rejects_are_errors(photos: Path, command: str) -> None:
    (photos / "IMG_1.HEIC").write_bytes(HEIC)
    (photos / "IMG_1.MOV").write_bytes(b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ")
    code, text = dreambooth(command, str(photos.parent / "job.yaml"))
    assert code == 2
    assert "IMG_1.HEIC: is a damaged or truncated HEIC image" in text
    assert "IMG_1.MOV: is a video" in text


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_odd_images_are_noted(photos: Path, command: str) -> None:
    (photos / "0.txt").write_text("a dog")
    (photos / "0.npz").write_bytes(b"PK\x03\x04")
    (photos / "3.png").write_bytes(encoded(noise(300, 64)))
    code, text = dreambooth(command, str(photos.parent / "job.yaml"))
    assert code == 0
    notes = [line for line in text.splitlines() if line.startswith("note: ")]
    assert len(notes) == 2
    assert notes[0].endswith("0.png: the .txt file beside it is ignored: it does not contain the identifier 'sks'")
    assert notes[1].startswith("note: 3.png: cropping to the center square keeps 21% of the image")


def test_validate_checks_captions_and_resolution(photos: Path) -> None:
    (photos.parent / "job.yaml").write_text(
        spec("training: {resolution: 256}").replace("class: dog", "class: dog\n    captions: {4.png: a sks dog}")
    )
    code, text = dreambooth("validate", str(photos.parent / "job.yaml"))
    assert code == 2
    assert 'spec.subject.captions["4.png"]: is not an image of the subject; did you mean' in text
    assert "0.png: has 64 x 64 pixels, training at resolution 256 requires at least 128 per side" in text


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_blurred_images_and_near_duplicates_are_noted(photos: Path, command: str) -> None:
    (photos / "3.png").write_bytes(encoded(gradient(64, 64)))
    (photos / "4.png").write_bytes(encoded(noise().point([value * 9 // 10 for value in range(256)] * 3)))
    code, text = dreambooth(command, str(photos.parent / "job.yaml"))
    assert code == 0
    assert "note: near-duplicates: 4.png of 0.png; training uses both" in text
    assert "note: 3.png (" in text and "may be blurred" in text


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("cluster: {workers: 2}\ntraining: {globalBatchSize: 3}", "3: cannot be split evenly across 2 worker(s)"),
        (
            "cluster: {workers: 2, resources: {gpu: 2}}\ntraining: {globalBatchSize: 6}",
            "6: cannot be split evenly across 2 worker(s) x 2 GPUs",
        ),
        ("training: {globalBatchSize: 3, gradientAccumulationSteps: 2}", "x 2 accumulation step(s)"),
        (
            "cluster: {elastic: {minWorkers: 1, maxWorkers: 4}}\ntraining: {globalBatchSize: 6}",
            "6: cannot be split evenly across any number of workers from 1 to 4",
        ),
        ("training: {warmupSteps: 100000}", "100000: exceeds training.steps, which defaults to 400"),
    ],
)
def test_validate_rejects_what_no_hardware_can_run(photos: Path, lines: str, sentence: str) -> None:
    (photos / "IMG_1.HEIC").write_bytes(HEIC)
    (photos.parent / "job.yaml").write_text(spec(lines))
    code, text = dreambooth("validate", str(photos.parent / "job.yaml"))
    assert (code, sentence in text, "IMG_1.HEIC: is a damaged or truncated HEIC image" in text) == (2, True, True), text


def test_validate_notes_models_that_are_not_on_this_machine(photos: Path) -> None:
    (photos.parent / "job.yaml").write_text(
        spec("model: {id: ./base}\nevaluation: {encoders: {dino: ./dino}}\ntraining: {resolution: 64}")
    )
    code, text = dreambooth("validate", str(photos.parent / "job.yaml"))
    assert code == 0
    for name in ("base", "dino"):
        assert f"note: {photos.parent / name} does not exist on this machine, dreambooth run requires it" in text


LONG = "a photo of a small red striped old cute nice toy animal drawing on the beach with one sks dog"
IGNORED = "the text encoder reads 14: 'the beach with one sks dog' would be ignored; shorten it"


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_prompts_that_the_model_does_not_read_to_the_end_are_errors(photos: Path, command: str) -> None:
    (photos / "0.txt").write_text(LONG)
    job = photos.parent / "job.yaml"
    code, text = dreambooth(command, str(job), "--set", f"subject.instancePrompt={LONG}")
    assert code == 2
    errors = [line for line in text.splitlines() if line.startswith("error ")]
    assert [line.split(":")[0] for line in errors] == [
        "error spec.subject.instancePrompt",
        'error spec.subject.captions["0.png"]',
    ]
    assert all(line.endswith(IGNORED) for line in errors)


def test_validate_does_not_judge_prompts_for_a_model_that_it_does_not_know(photos: Path) -> None:
    job, prompt = photos.parent / "job.yaml", ("--set", f"subject.instancePrompt={LONG}")
    for model in ("runtimeRef={name: gpu}", "model.id=team/not-in-the-cache"):
        assert dreambooth("validate", str(job), *prompt, "--set", model, "--set", "training.resolution=64")[0] == 0


@pytest.mark.parametrize("command", ["validate", "plan"])
def test_a_local_model_that_is_not_supported_is_an_error(photos: Path, tmp_path: Path, command: str) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model_index.json").write_text('{"_class_name": "PixArtPipeline"}')
    code, text = dreambooth(command, str(photos.parent / "job.yaml"), "--set", f"model.id={tmp_path}/model")
    assert code == 2
    assert text.count("is a PixArtPipeline, which is not supported; use a model") == 1


def test_validate_does_not_require_images_on_this_machine(tmp_path: Path) -> None:
    job = tmp_path / "job.yaml"
    job.write_text(JOB)
    code, text = dreambooth("validate", str(job))
    assert (code, f"note: {tmp_path}/photos does not exist on this machine" in text) == (0, True)
    job.write_text(JOB.replace("photos", "s3://bucket/photos"))
    assert dreambooth("validate", str(job)) == (0, f"{job}: DreamBoothJob my-dog is valid\n")
