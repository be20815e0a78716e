"""A whole job with DeepFloyd IF by the command line: base model and super-resolution model from the Hub.

The job is killed while it trains the second model, and then completed. A run takes minutes on a loaded machine, so what
an uninterrupted one would learn is computed in this process, from the caches of the job.
"""

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
import torch
import yaml
from hubserver import COMMIT, run_hub
from PIL import Image
from safetensors.torch import load_file
from test_cascade import SECOND, draw
from test_run import kill_tree

from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.models.files import ADAPTER_FILE, INDEX
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.run_record import read_run
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.messages import RECORDS_FILE
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.long]

STEPS = 20
MARK = 123.0
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
        "evaluation": {"prompts": ["a {} on the beach"], "imagesPerPrompt": 1, "enabled": False},
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


def train_uninterrupted(plan: Plan, job: JobFolder, folder: JobFolder) -> list[float]:
    """Train a stage from the caches of a job in this process, and save it to a folder; returns the losses."""
    torch.manual_seed(plan.spec.training.seed)  # as workers do: adapters start with random values
    engine, data = PlainEngine(plan, None), load_data(job.of_stage(plan.stage).latents)
    losses = [float(run_step(engine, plan, data, step, 0, 1)[0]) for step in range(plan.steps)]
    folder.work.mkdir(parents=True)
    engine.save_weights(folder.work, 0)
    save_trained_model(plan, folder.work, folder)
    return losses


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
def resumed(runs: Runs) -> JobFolder:
    """The folder of a job that was killed after a checkpoint of the second stage, and started again.

    In between, the losses in all checkpoints are marked: they are in the result if no step is repeated.
    """
    process, folder = runs.start("out"), JobFolder(runs.folder / "out")
    second, deadline = folder.of_stage(SECOND), time.monotonic() + 300
    while not any("checkpoint_" in path.read_text() for path in second.checkpoints.glob("*/checkpoint_manager*.json")):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    kill_tree(process)
    assert not second.losses.exists(), "it was killed too late"
    marked = [*folder.work.glob(f"checkpoints/**/{RECORDS_FILE}"), *second.checkpoints.glob(f"**/{RECORDS_FILE}")]
    assert len(marked) >= 2
    for path in marked:
        first, *others = path.read_text().splitlines()
        path.write_text("\n".join([json.dumps({**json.loads(first), "learning_rate": MARK}), *others]) + "\n")
    runs.run("out")
    return folder


def test_a_job_killed_in_the_second_stage_resumes_there(
    resumed: JobFolder, tiny_if_model: Path, tiny_super_resolution_model: Path, tmp_path: Path
) -> None:
    models = {"": tiny_if_model, SECOND: tiny_super_resolution_model}
    for stage in read_run(resumed).plan.stages:
        records = [json.loads(line) for line in resumed.of_stage(stage.stage).losses.read_text().splitlines()]
        assert [record["step"] for record in records] == list(range(1, STEPS + 1))
        assert records[0]["learning_rate"] == MARK, "it continued from a checkpoint"
        alone = JobFolder(tmp_path / (stage.stage or "base"))
        local = stage.model_copy(update={"model": BaseModelRef(id=str(models[stage.stage]))})
        losses = train_uninterrupted(local, resumed, alone)
        assert [record["loss"] for record in records] == pytest.approx(losses, rel=1e-4)
        published = load_file(resumed.model / stage.stage / ADAPTER_FILE)
        expected = load_file(alone.trained / ADAPTER_FILE)
        assert published.keys() == expected.keys()
        for name, weight in published.items():
            torch.testing.assert_close(weight, expected[name], atol=1e-4, rtol=1e-3)


def test_a_job_publishes_both_stages_for_plain_diffusers(
    runs: Runs, resumed: JobFolder, tiny_if_model: Path, tiny_super_resolution_model: Path
) -> None:
    model = runs.folder / "out" / "model"
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
    assert not list((runs.folder / "out" / "work").rglob("checkpoint_*"))


def test_images_are_generated_with_the_published_adapters(runs: Runs, resumed: JobFolder) -> None:
    model = runs.folder / "out" / "model"
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
