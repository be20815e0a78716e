"""`dreambooth run` on the embedded model: complete, interrupted, killed, and with errors."""

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
from PIL import Image
from safetensors.torch import load_file

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.families.registry import weights_digest
from dreambooth_trainer.sampling.evaluation_set import image_requests
from dreambooth_trainer.sampling.pipeline import SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.published import MANIFEST, ModelManifest, contents_digest
from dreambooth_trainer.store.run_record import read_run

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
PHASES = list(TrainerPhase)
WITHOUT_EVALUATION = ("--set", "evaluation.enabled=false")


class Runs:
    """Runs `dreambooth run` in subprocesses that share one store of class images."""

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
        return json.loads((self.folder / out / "work" / "phases" / "Publish.json").read_text())["digest"]

    def wait_for_checkpoint(self, out: str, process: subprocess.Popen[str]) -> None:
        """Wait until a checkpoint is registered: from then on it can be resumed."""
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            managers = (self.folder / out / "work" / "checkpoints").glob("*/checkpoint_manager_snapshot.json")
            if any("checkpoint_" in path.read_text() for path in managers):
                return
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.05)
        raise AssertionError("no checkpoint within 400 s")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    return Runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def complete(runs: Runs) -> str:
    """The output of a run without interruptions."""
    code, text = runs.run("complete")
    assert code == 0, text
    return text


def kill_tree(process: subprocess.Popen[str]) -> None:
    """Kill all processes of a run including Ray's, as when a node dies."""
    children = psutil.Process(process.pid).children(recursive=True)
    process.kill()
    for child in children:
        child.kill()
    psutil.wait_procs(children, timeout=30)
    process.communicate()


def test_a_run_writes_the_report_and_the_model(runs: Runs, complete: str) -> None:
    for phase in PHASES:
        assert re.search(rf"^{phase} ", complete, re.MULTILINE), complete
    out = runs.folder / "complete"
    scores = json.loads((out / "model" / "scores.json").read_text())
    assert set(scores) == {"before", "after"}
    page = (out / "report.html").read_text()
    assert "a sks dog" in page
    assert page.count("data:image/png;base64,") > 20
    assert not re.search(r"(src|href)=[\"']?http", page)
    for name in ("README.md", "comparison.png", "my-dog.safetensors", "model_index.json", "job.yaml"):
        assert (out / "model" / name).stat().st_size > 0
    assert not (out / "work" / "checkpoints").exists()
    assert len(runs.losses("complete")) == STEPS


def test_a_run_leaves_its_log(runs: Runs, complete: str) -> None:
    log = (runs.folder / "complete" / "logs" / "attempt-1.log").read_text()
    assert "Train started" in log
    assert f"Train completed {STEPS}/{STEPS}" in log
    assert "Report  " in log
    assert log.rstrip().endswith("completed")


def test_score_computes_the_scores_of_the_evaluation(runs: Runs, complete: str) -> None:
    command = [sys.executable, "-m", "dreambooth_trainer", "score", "--images", str(runs.folder / "complete")]
    report = json.loads(subprocess.run([*command, "-o", "json"], capture_output=True, check=True, text=True).stdout)
    own = json.loads((runs.folder / "complete" / "model" / "scores.json").read_text())["after"]
    assert report["scores"]["values"] == pytest.approx(own["values"], abs=1e-4)
    assert report["scores"]["realImages"] == pytest.approx(own["realImages"], abs=1e-4)
    assert (report["images"], report["references"], report["classImages"]) == (2, 5, 32)
    refused = subprocess.run([*command, "--prompt", "a dog"], capture_output=True, check=False, text=True)
    assert refused.returncode == 2
    assert "--prompt: 'a dog': is not used for the folder of a job" in refused.stderr


def test_diffusers_loads_the_published_model(runs: Runs, complete: str) -> None:
    pipeline = StableDiffusionPipeline.from_pretrained(runs.folder / "complete" / "model", use_safetensors=True)
    base = StableDiffusionPipeline.from_pretrained(WEIGHTS)
    tuned, original = pipeline.unet.state_dict(), base.unet.state_dict()
    assert any(not torch.equal(tuned[name], original[name]) for name in tuned)
    assert pipeline("a sks dog", num_inference_steps=2, output_type="np").images.shape == (1, 32, 32, 3)


def test_the_evaluation_samples_from_the_published_weights(runs: Runs, complete: str) -> None:
    out = runs.folder / "complete"
    plan = read_run(JobFolder(out)).plan
    assert weights_digest(out / "model") == weights_digest(out / "work" / "trained")
    manifest = ModelManifest.model_validate_json((out / "model" / MANIFEST).read_text())
    assert runs.digest("complete") == contents_digest(manifest)
    (store,) = (out / "work" / "evaluation-images").glob("*/after")
    config = SamplingConfig(plan.sampler, plan.resolution, plan.precision, batch_size=1)
    pipeline = load_pipeline(out / "model", plan.precision, "cpu")
    for request in image_requests(plan, "after")[:2]:
        (image,) = sample_batch(pipeline, config, [request])
        drawn = np.asarray(Image.open(store / f"{request.name}.png"), dtype=int)
        # The size of a batch changes the rounding.
        np.testing.assert_allclose(np.asarray(image, dtype=int), drawn, rtol=0, atol=1)


def test_a_complete_job_is_not_run_again(runs: Runs, complete: str) -> None:
    before = (runs.folder / "complete" / "report.html").stat().st_mtime_ns
    code, text = runs.run("complete")
    assert code == 0
    assert text.count("already complete") == len(PHASES)
    assert (runs.folder / "complete" / "report.html").stat().st_mtime_ns == before


@pytest.mark.long  # tests/node/test_jobs.py kills workers too, and compares the published models
def test_a_killed_worker_is_replaced_without_changing_any_loss(runs: Runs, complete: str) -> None:
    process = runs.start("worker-killed", *WITHOUT_EVALUATION)
    runs.wait_for_checkpoint("worker-killed", process)
    processes = psutil.Process(process.pid).children(recursive=True)
    (worker,) = [child for child in processes if "RayTrainWorker" in " ".join(child.cmdline())]
    worker.kill()
    text = process.communicate(timeout=500)[0]
    assert process.returncode == 0, text
    assert runs.losses("worker-killed") == pytest.approx(runs.losses("complete"), rel=1e-4)
    assert "reused 8" in text


def test_a_killed_job_resumes_from_its_checkpoint_with_two_workers(runs: Runs, complete: str) -> None:
    process = runs.start("job-killed", *WITHOUT_EVALUATION)
    runs.wait_for_checkpoint("job-killed", process)
    kill_tree(process)
    assert not (runs.folder / "job-killed" / "model").exists()
    code, text = runs.run("job-killed", *WITHOUT_EVALUATION, "--set", "cluster.workers=2")
    assert code == 0, text
    assert text.count("already complete") == 3
    assert runs.losses("job-killed") == pytest.approx(runs.losses("complete"), rel=1e-3)


@pytest.mark.long
def test_a_job_killed_at_the_start_of_each_phase_has_the_same_result(runs: Runs, complete: str) -> None:
    phases = runs.folder / "killed-often" / "work" / "phases"
    for phase in PHASES[:-1]:
        process = runs.start("killed-often")
        while not (phases / f"{phase}.json").exists():
            assert process.poll() is None, process.communicate()[0]
            time.sleep(0.02)
        kill_tree(process)
    assert not (runs.folder / "killed-often" / "model").exists()
    code, text = runs.run("killed-often")
    assert code == 0, text
    assert text.count("already complete") == len(PHASES) - 1
    assert runs.digest("killed-often") == runs.digest("complete")


@pytest.mark.long
def test_a_step_with_learning_rate_zero_in_bf16_publishes_the_base_weights(runs: Runs) -> None:
    # The learning rate of the first warmup step is zero.
    settings = (
        "training={steps: 1, warmupSteps: 1, precision: bf16}",
        "evaluation.enabled=false",
    )
    code, text = runs.run("untrained", *(word for setting in settings for word in ("--set", setting)))
    assert code == 0, text
    for part in ("unet", "text_encoder"):
        (path,) = (WEIGHTS / part).glob("*.safetensors")
        base, published = load_file(path), load_file(runs.folder / "untrained" / "model" / part / path.name)
        assert base.keys() == published.keys()
        changed = [name for name, weights in base.items() if not torch.equal(weights.half(), published[name])]
        assert changed == [], part


@pytest.mark.long
def test_lora_publishes_the_adapter_and_on_request_the_merged_model(runs: Runs) -> None:
    settings = (
        "training.method=LoRA",
        "training.textEncoder.train=true",
        "training.lora.rank=4",
        "training.lora.alpha=8",
        "evaluation.enabled=false",
    )
    words = [word for setting in settings for word in ("--set", setting)]
    code, text = runs.run("lora", *words)
    assert code == 0, text
    model = runs.folder / "lora" / "model"
    adapters = {"my-dog.safetensors", "pytorch_lora_weights.safetensors"}
    assert {path.name for path in model.rglob("*.safetensors")} == adapters
    assert not (model / "model_index.json").exists()
    assert "load_lora_weights" in (model / "README.md").read_text()
    command = ["generate", "--model", str(runs.folder / "lora"), "--prompt", "a sks dog", "--count", "1"]
    for name, steps in (("images", ()), ("merged-images", ("--set", "output.formats=[lora, diffusers, safetensors]"))):
        if steps:
            code, text = runs.run("lora", *words, *steps)
            assert code == 0, text
            assert text.count("already complete") == len(PHASES) - 1
        out = runs.folder / name
        subprocess.run([sys.executable, "-m", "dreambooth_trainer", *command, "--out", str(out)], check=True)
    images = [
        np.asarray(Image.open(runs.folder / name / "00-000.png")).astype(int) for name in ("images", "merged-images")
    ]
    np.testing.assert_allclose(images[0], images[1], atol=2)
    assert {path.name for path in model.glob("*.safetensors")} == adapters | {"my-dog-merged.safetensors"}

    def generate(folder: Path, adapter: str | None = None) -> np.ndarray:
        if folder.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(
                folder, config=str(WEIGHTS), dtype=torch.float32, safety_checker=None, local_files_only=True
            )
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(folder, dtype=torch.float32, safety_checker=None)
        if adapter is not None:
            pipeline.load_lora_weights(model, weight_name=adapter)
        noise = torch.Generator().manual_seed(0)
        return pipeline("a sks dog", num_inference_steps=4, generator=noise, output_type="np").images

    merged = generate(model)
    for other in (generate(model / "my-dog-merged.safetensors"), *(generate(WEIGHTS, name) for name in adapters)):
        # The merged model is rounded to fp16.
        np.testing.assert_allclose(other, merged, rtol=0, atol=1 / 255)
    assert np.abs(generate(WEIGHTS) - merged).max() > 10 / 255


def test_published_files_are_readable_by_everyone(runs: Runs, complete: str) -> None:
    model = runs.folder / "complete" / "model"
    files = [path for path in (*model.rglob("*"), *(runs.folder / "store").rglob("*")) if path.is_file()]
    assert {str(path): oct(path.stat().st_mode & 0o444) for path in files} == {str(path): "0o444" for path in files}


PHOTOS = Path(__file__).parents[2].parent / "shared" / "dreambooth-dataset" / "dog"


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"requires photographs in {PHOTOS}")
@pytest.mark.long
def test_a_job_with_real_photographs_completes(runs: Runs, complete: str) -> None:
    code, text = runs.run("real", "--set", f"subject.images.uri={PHOTOS}", "--set", "training={steps: 2}")
    assert code == 0, text
    assert "reused 8" in text
    assert (runs.folder / "real" / "report.html").exists()


def test_a_full_disk_fails_the_run_without_retries(runs: Runs, complete: str, small_disk: Path) -> None:
    code, text = runs.run(str(small_disk / "job"))
    assert code == 1
    assert "training cannot continue: No space left on device" in text
    assert len(list((small_disk / "job" / "work" / "checkpoints").glob("*/checkpoint_*"))) <= 1


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_prints_how_to_continue(runs: Runs, number: signal.Signals) -> None:
    # Background processes of a shell ignore SIGINT, and their children inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    process = runs.start(f"interrupted-{number.name}")
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith(TrainerPhase.PREPARE):
            break
    os.kill(process.pid, number)
    text = process.communicate(timeout=120)[0]
    assert process.returncode == 130
    assert "The same command continues where it stopped." in text


def test_a_model_below_the_thresholds_is_not_published(runs: Runs, complete: str) -> None:
    code, text = runs.run("complete", "--set", "evaluation.thresholds.dino=0.99")
    assert code == 3
    assert "spec.evaluation.thresholds.dino: 0.99: the trained model scores" in text
    assert re.search(r"^(ok|problem): The subject is ", text, re.MULTILINE)


def test_an_invalid_job_is_rejected_before_anything_starts(runs: Runs) -> None:
    code, text = runs.run("invalid", "--set", "training.stepz=3", "--set", "priorPreservation.lossWeight=-1")
    assert code == 2
    assert "--set training.stepz=3: stepz is not a known key; did you mean steps?" in text
    assert "spec.priorPreservation.lossWeight" in text
    assert not (runs.folder / "invalid").exists()


def test_a_folder_in_use_is_rejected(runs: Runs, complete: str) -> None:
    from dreambooth_trainer.store.folder import JobFolder

    with JobFolder(runs.folder / "complete").locked():
        code, text = runs.run("complete")
    assert code == 2
    assert f"is in use by process {os.getpid()}" in text
