"""Whole jobs with DeepFloyd IF by the command line: base model and super-resolution model from the Hub."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import yaml
from hubserver import COMMIT, run_hub
from PIL import Image
from test_cascade import SECOND, draw
from test_run import kill_tree

from dreambooth_trainer.models.files import ADAPTER_FILE, INDEX

pytestmark = [pytest.mark.trainer, pytest.mark.long]

STEPS = 12
JOB = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "my-dog"},
    "spec": {
        "model": {"id": "team/model", "superResolution": {"id": "team/second"}},
        "subject": {"class": "dog", "images": {"uri": "photos"}},
        "priorPreservation": {"numClassImages": 2, "sampler": {"steps": 1}},
        "training": {
            "method": "LoRA",
            "steps": STEPS,
            "learningRate": 0.01,
            "lora": {"rank": 2},
            "checkpointEverySteps": 4,
        },
        "evaluation": {"prompts": ["a {} on the beach"], "enabled": False},
        "output": {"formats": ["diffusers", "lora"]},
    },
}


class Runs:
    """Runs of the job in subprocesses, which share one store of class images."""

    def __init__(self, folder: Path, url: str) -> None:
        self.folder = folder
        cache = {"HF_HOME": str(folder / "cache"), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": url}
        self.environment = {**os.environ, **cache}
        (folder / "job.yaml").write_text(yaml.safe_dump(JOB))
        (folder / "photos").mkdir()
        pixels = np.random.default_rng(0).integers(0, 255, (3, 64, 64, 3), dtype=np.uint8)
        for number, image in enumerate(pixels):
            Image.fromarray(image).save(folder / "photos" / f"{number}.png")

    def start(self, out: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dreambooth_trainer", "run", "job.yaml", "--out", out, "--store", "store"]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
        return subprocess.Popen(command, cwd=self.folder, env=self.environment, start_new_session=True, **streams)

    def run(self, out: str) -> str:
        process = self.start(out)
        text = process.communicate(timeout=550)[0]
        assert process.returncode == 0, text
        return text

    def losses(self, out: str, stage: str) -> list[float]:
        lines = (self.folder / out / "work" / stage / "losses.jsonl").read_text().splitlines()
        assert len(lines) == STEPS
        return [json.loads(line)["loss"] for line in lines]


@pytest.fixture(scope="module")
def runs(
    tiny_if_model: Path, tiny_super_resolution_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Runs]:
    with run_hub() as (hub, url):
        hub.serve(tiny_if_model)
        hub.serve(tiny_super_resolution_model, "team/second")
        yield Runs(tmp_path_factory.mktemp("cascade"), url)
        assert not hub.sent_bytes["team/second/text_encoder/model.safetensors"], "T5 is downloaded once"


@pytest.fixture(scope="module")
def complete(runs: Runs) -> str:
    return runs.run("complete")


def test_a_job_publishes_both_stages_for_plain_diffusers(
    runs: Runs, complete: str, tiny_if_model: Path, tiny_super_resolution_model: Path
) -> None:
    model = runs.folder / "complete" / "model"
    published = draw(model, model / SECOND)
    assert published.shape == (64, 64, 3)
    base = draw(tiny_if_model, tiny_super_resolution_model)
    assert np.abs(base - published).max() > 1 / 255
    adapted = draw(tiny_if_model, tiny_super_resolution_model, model)
    np.testing.assert_allclose(adapted, published, rtol=0, atol=2 / 255)
    class_images = [Image.open(path).size for path in (runs.folder / "store").rglob("0*.png")]
    assert class_images == [(64, 64)] * 2, "class images are generated once, through both stages"
    manifest = json.loads((model / "dreambooth.json").read_text())
    assert manifest["superResolution"] == {"id": "team/second", "revision": COMMIT}
    assert {INDEX, f"{SECOND}/{INDEX}", ADAPTER_FILE, f"{SECOND}/{ADAPTER_FILE}"} <= manifest["files"].keys()
    assert not list((runs.folder / "complete" / "work").rglob("checkpoint_*"))


def test_a_job_killed_in_the_second_stage_resumes_there(runs: Runs, complete: str) -> None:
    process, work = runs.start("killed"), runs.folder / "killed" / "work"
    deadline = time.monotonic() + 400
    while not any("checkpoint_" in path.read_text() for path in (work / SECOND).glob("*/*/checkpoint_manager*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    kill_tree(process)
    assert not (work / SECOND / "losses.jsonl").exists(), "it was killed too late"
    before = {path: path.stat().st_mtime_ns for path in (work / "checkpoints").rglob("state.pt")}
    runs.run("killed")
    assert {path: path.stat().st_mtime_ns for path in before if path.exists()} == before
    for stage in ("", SECOND):
        assert runs.losses("killed", stage) == pytest.approx(runs.losses("complete", stage), rel=1e-4)


def test_images_are_generated_with_the_published_adapters(runs: Runs, complete: str) -> None:
    model = runs.folder / "complete" / "model"
    alone = runs.folder / "adapters"
    (alone / SECOND).mkdir(parents=True)
    for name in (ADAPTER_FILE, f"{SECOND}/{ADAPTER_FILE}", "dreambooth.json"):
        (alone / name).write_bytes((model / name).read_bytes())
    images = []
    for folder in (model, alone):
        out = runs.folder / f"images-{folder.name}"
        command = [sys.executable, "-m", "dreambooth_trainer", "generate", "--model", str(folder), "--out", str(out)]
        command += ["--prompt", "a sks dog", "--count", "1", "--steps", "2"]
        done = subprocess.run(command, env=runs.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        images.append(np.asarray(Image.open(out / "00-000.png"), dtype=int))
    np.testing.assert_allclose(images[0], images[1], rtol=0, atol=2)
