"""The whole job on the embedded model, interrupted in every way a machine can, through the command line."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file

from dreambooth_trainer.sprites import WEIGHTS

pytestmark = pytest.mark.trainer

STEPS = 16
JOB = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "my-dog"},
    "spec": {
        "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
        "priorPreservation": {"numClassImages": 8, "sampler": {"steps": 4}},
        "training": {"steps": STEPS, "checkpointEverySteps": 4},
        "evaluation": {"imagesPerPrompt": 1, "prompts": ["a {} on the beach", "a small {} in the snow"]},
    },
}
PHASES = ["prepare", "class-images", "encode", "train", "evaluate", "publish"]


class Runs:
    """Starts `dreambooth run` in processes of its own, all on one store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.job = folder, folder / "job.yaml"
        self.job.write_text(yaml.safe_dump(JOB))

    def start(self, out: str, *more: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "dreambooth_trainer", "run", str(self.job), "--out", str(self.folder / out)]
        return subprocess.Popen(
            [*command, "--store", str(self.folder / "store"), *more],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def run(self, out: str, *more: str) -> tuple[int, str]:
        process = self.start(out, *more)
        text = process.communicate(timeout=500)[0]
        return process.returncode, text

    def losses(self, out: str) -> list[float]:
        lines = (self.folder / out / "work" / "losses.jsonl").read_text().splitlines()
        assert [json.loads(line)["step"] for line in lines] == list(range(1, STEPS + 1))
        return [json.loads(line)["loss"] for line in lines]

    def digest(self, out: str) -> str:
        return json.loads((self.folder / out / "work" / "phases" / "publish.json").read_text())["digest"]

    def wait_for_checkpoint(self, out: str, process: subprocess.Popen[str]) -> None:
        """Until a checkpoint is registered, which is when it can be resumed."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            managers = (self.folder / out / "work" / "checkpoints").glob("*/checkpoint_manager_snapshot.json")
            if any("checkpoint_" in path.read_text() for path in managers):
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError("no checkpoint came")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def whole(runs: Runs) -> str:
    """What a run that nothing disturbs prints."""
    code, text = runs.run("whole")
    assert code == 0, text
    return text


def kill_tree(process: subprocess.Popen[str]) -> None:
    """What a node's death leaves: nothing of the run, Ray's processes included."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=30)
    process.communicate()


def test_a_run_leaves_everything_a_person_wants(runs: Runs, whole: str) -> None:
    for phase in PHASES:
        assert re.search(rf"^{phase} ", whole, re.MULTILINE), whole
    out = runs.folder / "whole"
    scores = json.loads((out / "model" / "scores.json").read_text())
    assert set(scores) == {"before", "after"}
    page = (out / "report.html").read_text()
    assert "a sks dog" in page
    assert page.count("data:image/png;base64,") > 20
    assert not re.search(r"(src|href)=[\"']?http", page)
    for name in ("README.md", "comparison.png", "my-dog.safetensors", "model_index.json", "job.yaml"):
        assert (out / "model" / name).stat().st_size > 0
    assert not (out / "work" / "checkpoints").exists()
    assert len(runs.losses("whole")) == STEPS


def test_diffusers_loads_what_was_published(runs: Runs, whole: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(runs.folder / "whole" / "model", use_safetensors=True)
    base = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    ours, theirs = pipeline.unet.state_dict(), base.unet.state_dict()
    assert any(not torch.equal(ours[name], theirs[name]) for name in ours)
    assert pipeline("a sks dog", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


def test_the_same_command_again_does_nothing_again(runs: Runs, whole: str) -> None:
    before = (runs.folder / "whole" / "report.html").stat().st_mtime_ns
    code, text = runs.run("whole")
    assert code == 0
    assert text.count("done before") == len(PHASES)
    assert (runs.folder / "whole" / "report.html").stat().st_mtime_ns == before


def test_a_killed_worker_is_replaced_and_no_loss_differs(runs: Runs, whole: str) -> None:
    process = runs.start("worker-killed")
    runs.wait_for_checkpoint("worker-killed", process)
    family = psutil.Process(process.pid).children(recursive=True)
    (worker,) = [child for child in family if "RayTrainWorker" in " ".join(child.cmdline())]
    worker.kill()
    text = process.communicate(timeout=500)[0]
    assert process.returncode == 0, text
    assert runs.losses("worker-killed") == pytest.approx(runs.losses("whole"), rel=1e-4)
    assert "reused 8" in text


def test_a_killed_job_goes_on_with_two_workers_where_it_stopped(runs: Runs, whole: str) -> None:
    process = runs.start("job-killed")
    runs.wait_for_checkpoint("job-killed", process)
    kill_tree(process)
    assert not (runs.folder / "job-killed" / "model").exists()
    code, text = runs.run("job-killed", "--set", "cluster.workers=2")
    assert code == 0, text
    assert text.count("done before") == 3
    assert runs.losses("job-killed") == pytest.approx(runs.losses("whole"), rel=1e-3)


def test_a_job_killed_as_each_phase_begins_ends_as_if_nothing_had_been(runs: Runs, whole: str) -> None:
    phases = runs.folder / "killed-often" / "work" / "phases"
    for before in PHASES[:-1]:
        process = runs.start("killed-often")
        while not (phases / f"{before}.json").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        kill_tree(process)
    assert not (runs.folder / "killed-often" / "model").exists()
    code, text = runs.run("killed-often")
    assert code == 0, text
    assert text.count("done before") == len(PHASES) - 1
    assert runs.digest("killed-often") == runs.digest("whole")


def test_steps_at_rate_zero_in_bf16_publish_the_base(runs: Runs) -> None:
    # The first step of a warm-up has a rate of zero.
    settings = ("training.steps=1", "training.warmupSteps=1", "training.precision=bf16", "evaluation.enabled=false")
    code, text = runs.run("untrained", *(word for setting in settings for word in ("--set", setting)))
    assert code == 0, text
    for part in ("unet", "text_encoder"):
        (path,) = (WEIGHTS / part).glob("*.safetensors")
        base, ours = load_file(path), load_file(runs.folder / "untrained" / "model" / part / path.name)
        assert base.keys() == ours.keys()
        changed = [name for name, weights in base.items() if not torch.equal(weights.half(), ours[name])]
        assert changed == [], part


def test_lora_publishes_its_adapter_beside_the_merged_model(runs: Runs) -> None:
    settings = (
        "training.method=LoRA",
        "training.textEncoder.train=true",
        "training.lora.rank=4",
        "training.lora.alpha=8",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    code, text = runs.run("lora", *words, "--set", "evaluation.enabled=false")
    assert code == 0, text
    model = runs.folder / "lora" / "model"
    files = {path.relative_to(model).as_posix(): path for path in model.rglob("*.safetensors")}
    assert {"my-dog.safetensors", "pytorch_lora_weights.safetensors", "unet/diffusion_pytorch_model.safetensors"} < set(
        files
    )
    assert {name: oct(path.stat().st_mode & 0o777) for name, path in files.items()} == dict.fromkeys(files, "0o644")
    assert "load_lora_weights" in (model / "README.md").read_text()

    def draw(folder: Path, adapter: Path | None) -> np.ndarray:
        pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        noise = torch.Generator().manual_seed(0)
        return pipeline("a sks dog", num_inference_steps=4, generator=noise, output_type="np").images

    merged = draw(model, None)
    np.testing.assert_allclose(
        draw(WEIGHTS, model), merged, rtol=0, atol=1 / 255
    )  # the merged model is rounded to fp16
    assert np.abs(draw(WEIGHTS, None) - merged).max() > 10 / 255


PHOTOS = Path(__file__).parents[2].parent / "shared" / "dreambooth-dataset" / "dog"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"needs real photographs in {PHOTOS}")
def test_real_photographs_go_all_the_way(runs: Runs, whole: str) -> None:
    code, text = runs.run("real", "--set", f"subject.images.uri={PHOTOS}", "--set", "training.steps=2")
    assert code == 0, text
    assert "reused 8" in text
    assert (runs.folder / "real" / "report.html").exists()


def test_a_full_disk_ends_the_run_with_one_try_and_one_sentence(runs: Runs, whole: str, small_disk: Path) -> None:
    code, text = runs.run(str(small_disk / "job"))
    assert code == 1
    assert "training cannot continue: No space left on device" in text
    assert len(list((small_disk / "job" / "work" / "checkpoints").glob("*/checkpoint_*"))) <= 1


def test_an_interrupted_run_says_how_to_go_on(runs: Runs) -> None:
    # A suite that a shell started in the background ignores Ctrl-C, and so would what it starts.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = runs.start("interrupted")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("prepare"):
            break
    os.kill(process.pid, signal.SIGINT)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "the same command goes on from here" in text


def test_scores_below_the_thresholds_publish_nothing(runs: Runs, whole: str) -> None:
    code, text = runs.run("whole", "--set", "evaluation.thresholds.dino=0.99")
    assert code == 3
    assert "spec.evaluation.thresholds.dino: 0.99: the trained model scores" in text


def test_a_wrong_job_is_told_before_anything_starts(runs: Runs) -> None:
    code, text = runs.run("wrong", "--set", "training.stepz=3", "--set", "priorPreservation.lossWeight=-1")
    assert code == 2
    assert "--set training.stepz=3: stepz is not a known key; did you mean steps?" in text
    assert "spec.priorPreservation.lossWeight" in text
    assert not (runs.folder / "wrong").exists()


def test_a_folder_in_use_is_told(runs: Runs, whole: str) -> None:
    from dreambooth_trainer.store.folder import JobFolder

    with JobFolder(runs.folder / "whole").locked():
        code, text = runs.run("whole")
    assert code == 2
    assert f"is in use by process {os.getpid()}" in text
