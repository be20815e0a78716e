"""The weights of the best step are published: what is kept, deleted and selected while a job trains."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import ray.train
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from test_plan import make_plan
from test_rerun import JOB, run
from test_training import make_data, with_prompts
from test_validation import FakeSaver

from dreambooth_api.errors import TransientError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.metrics.best_step import explain, standing
from dreambooth_trainer.phases.select import MAX_FAILURES, Choice, Selector
from dreambooth_trainer.phases.train import TRAIN
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.sampling.validation_set import validations_of
from dreambooth_trainer.store.candidates import candidates_of
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training import loop
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.checkpoint import WEIGHTS_FILE
from dreambooth_trainer.training.messages import LoopConfig, StepRecord

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

BASE = {"dino": 0.1, "clipI": 0.5, "clipT": 0.3}
DINO = {1: 0.3, 2: 0.9, 3: 0.5, 4: 0.6, 5: 0.6, 6: 0.6}
LAST = "the weights of the last step are published, not those of the best one: "


def score(step: int) -> dict[str, float]:
    """Step 2 is the best one."""
    return {**BASE, "dino": DINO[step]} if step else BASE


def plan_of(steps: int, model: Path | None = None, *, select: str = "Best", **validation: Any) -> Plan:
    training = {
        "resolution": 32,
        "steps": steps,
        "learningRate": 0.01,
        "method": "LoRA",
        "validation": {"prompts": ["a {}"], "everySteps": 1, **validation},
        "checkpointEverySteps": min(3, steps),
    }
    spec = {"training": training, "output": {"select": select}}
    plan = make_plan(spec | ({"model": {"id": str(model)}} if model else {}))
    return plan.model_copy(update={"sampler": SamplerSettings(steps=1, guidance_scale=1)})


class Stored:
    """What the workers and the driver have stored of a job."""

    def __init__(self, root: Path, plan: Plan) -> None:
        folder = JobFolder(root)
        self.validations, self.candidates = validations_of(plan, folder, "key"), candidates_of(folder, "key")
        self.validations.prepare()
        self.selector = Selector(plan, self.validations, self.candidates)

    def train(self, *steps: int) -> None:
        """Store images and weights of steps, as the workers do."""
        for step in steps:
            self.validations.put(step, 0, Image.new("RGB", (8, 8)))
            if step:
                self.candidates.folder(step).mkdir(parents=True)
                (self.candidates.folder(step) / WEIGHTS_FILE).write_text(str(step))

    def score(self, *steps: int) -> None:
        for step in steps:
            self.validations.add_scores(step, score(step))
        self.selector.update()


def test_only_weights_that_may_be_selected_are_kept(tmp_path: Path) -> None:
    stored = Stored(tmp_path, plan_of(4))
    stored.train(0, 1, 2, 3)
    stored.score(0)
    assert stored.candidates.steps() == [1, 2, 3], "nothing is known"
    stored.score(2, 3)
    assert stored.candidates.steps() == [1, 2, 3], "the score of step 1 is not known"
    stored.score(1)
    assert stored.candidates.steps() == [2]
    stored.train(4)
    stored.selector.update()
    assert stored.candidates.steps() == [2, 4], "the best one, and those that are not scored"
    assert not stored.candidates.stop_requested()
    choice = stored.selector.choose(score)
    assert (choice.step, choice.weights) == (2, stored.candidates.folder(2))
    assert choice.reason.startswith("Step 2 of 4 was selected: its DINO (0.900) is the highest of the 4 of 4")
    assert stored.candidates.steps() == [2], "what was scored after training is deleted, too"


def test_weights_are_kept_until_those_of_a_better_step_are_written(tmp_path: Path) -> None:
    stored = Stored(tmp_path, plan_of(4, patience=1))
    stored.train(0, 1)
    stored.score(0, 1)
    stored.validations.put(2, 0, Image.new("RGB", (8, 8)))  # the images are there first
    stored.score(2, 3)
    assert (stored.candidates.steps(), stored.candidates.stop_requested()) == ([1], False)
    stored.train(2)
    stored.selector.update()
    assert (stored.candidates.steps(), stored.candidates.stop_requested()) == ([2], True)


def test_training_is_stopped_by_the_rule_and_later_validations_do_not_count(tmp_path: Path) -> None:
    stored = Stored(tmp_path, plan_of(6, patience=2))
    stored.train(0, 1, 2, 3)
    stored.score(0, 1, 2, 3)
    assert not stored.candidates.stop_requested()
    stored.train(4, 5)
    stored.score(4)
    assert (stored.candidates.steps(), stored.candidates.stop_requested()) == ([2], True)
    stored.train(6)
    stored.validations.add_scores(6, {**BASE, "dino": 1.0})
    choice = stored.selector.choose(lambda step: pytest.fail(f"step {step} does not count"))
    assert choice.step == 2
    assert choice.reason.endswith("and the validations after it until step 4 were not better")


def failing(step: int) -> Mapping[str, float]:
    raise OSError(f"no space left\nfor the scores of step {step}")


def test_the_last_step_is_published_with_a_warning_if_a_score_is_missing(tmp_path: Path) -> None:
    stored = Stored(tmp_path, plan_of(4))
    stored.train(0, 1, 2, 3, 4)
    stored.score(0, 1, 2, 4)
    reason = f"{LAST}the validation of step 3 could not be scored: for the scores of step 3"
    assert stored.selector.choose(failing) == Choice(None, reason)
    assert stored.selector.choose(score).step == 2, "a run that continues can score it"


def test_no_step_is_selected_whose_weights_are_missing(tmp_path: Path) -> None:
    stored = Stored(tmp_path, plan_of(4))
    stored.train(0, 1, 2, 3, 4)
    stored.candidates.discard(2)
    choice = stored.selector.choose(score)
    assert choice == Choice(None, f"{LAST}the weights of step 2 do not exist any more")


def test_weights_are_not_kept_for_a_choice_that_cannot_be_made(tmp_path: Path) -> None:
    """Otherwise those of all validations would fill the disk."""
    stored = Stored(tmp_path, plan_of(4))
    stored.train(0, 1, 2)
    for _ in range(MAX_FAILURES - 1):
        stored.selector.failed(1)
    assert stored.candidates.steps() == [1, 2]
    stored.selector.failed(1)
    assert (stored.candidates.steps(), stored.candidates.given_up()) == ([], True)
    again = Selector(plan_of(4), stored.validations, stored.candidates)
    assert again.choose(score) == Choice(None, f"{LAST}a validation could not be scored {MAX_FAILURES} times")


def test_the_selection_is_part_of_the_key_only_if_there_is_one() -> None:
    def key(plan: Plan) -> Any:
        context: Any = SimpleNamespace(plan=plan, keys={TrainerPhase.ENCODE: "encode"})
        return TRAIN.inputs(context)

    best, last = plan_of(4), plan_of(4, select="Last")
    assert "select" not in key(last)
    assert key(best) == {**key(last), "select": key(best)["select"]}
    changes = {
        "dino": "another/encoder",
        "clip": "another/encoder",
        "sampler": SamplerSettings(steps=2, guidance_scale=1),
    }
    others = [plan_of(4, patience=2), plan_of(4, prompts=["a red {}"]), plan_of(4, everySteps=2)]
    others += [best.model_copy(update={name: value}) for name, value in changes.items()]
    assert all(key(other) != key(best) for other in others)


class Training:
    """Runs the loop of one worker in this process."""

    def __init__(self, root: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.model, self._patch = root, model, monkeypatch
        self.cached = with_prompts(load_data(make_data(root / "latents")), "text_embeds")
        self.stop: Callable[[], bool] = lambda: False
        context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
        monkeypatch.setattr(ray.train, "get_context", lambda: context)
        monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda mode: [])
        monkeypatch.setattr(loop, "load_data", lambda *_: self.cached)
        monkeypatch.setattr(loop, "stop_requested", lambda rank: self.stop())

    def run(
        self,
        name: str,
        plan: Plan,
        stored: Stored | None,
        checkpoint: Path | None = None,
        report: Callable[[Any], object] = lambda message: None,
    ) -> list[int]:
        """Returns the steps that were trained; checkpoints are in folders named after their steps."""
        steps: list[int] = []

        def reported(message: Any) -> None:
            if isinstance(message, StepRecord):
                steps.append(message.step)
            report(message)

        self._patch.setattr(loop, "CheckpointSaver", lambda engine, *_: FakeSaver(engine, self.root / name))
        self._patch.setattr(loop, "_last_checkpoint", lambda: contextlib.nullcontext(checkpoint))
        stores = (stored.validations, stored.candidates) if stored else (None, None)
        loop.train_loop(LoopConfig(plan, self.root, 1, reported, *stores))
        return steps

    def weights(self, name: str, step: int) -> bytes:
        return (self.root / name / str(step) / WEIGHTS_FILE).read_bytes()


@pytest.fixture
def training(tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch) -> Training:
    return Training(tmp_path, tiny_model, monkeypatch)


def test_the_selected_weights_are_those_of_a_training_that_ends_there(training: Training) -> None:
    plan = plan_of(4, training.model)
    stored = Stored(training.root / "job", plan)
    assert training.run("best", plan, stored) == [1, 2, 3, 4]
    assert stored.candidates.steps() == [1, 2, 3, 4]
    choice = stored.selector.choose(score)
    assert choice.weights
    training.run("short", plan_of(2, training.model), None)
    assert (choice.weights / WEIGHTS_FILE).read_bytes() == training.weights("short", 2)
    assert training.weights("best", 4) != training.weights("short", 2)

    # The workers of a run that continues at step 3 repeat step 4, and lose nothing of the steps before.
    stored.score(0, 1, 2, 3)
    stored.candidates.discard(4)
    assert stored.candidates.steps() == [2]
    stored.validations.image(4, 0).unlink()
    assert training.run("again", plan, stored, training.root / "best" / "3") == [4]
    assert training.weights("again", 4) == training.weights("best", 4)
    assert stored.candidates.steps() == [2, 3, 4], "the weights at which the workers continue are written once more"
    stored.selector.update()
    assert stored.candidates.steps() == [2, 4]
    assert stored.selector.choose(score) == choice


def test_training_stops_early_and_publishes_what_it_would_have_published_later(training: Training) -> None:
    plan = plan_of(6, training.model, patience=1)
    stored, late = (Stored(training.root / name, plan) for name in ("job", "late"))

    def driver(message: Any) -> None:
        if isinstance(message, StepRecord):  # the validation of the step before is complete
            stored.score(*range(message.step))

    assert training.run("early", plan, stored, report=driver) == [1, 2, 3, 4]
    assert training.run("late", plan, late) == [1, 2, 3, 4, 5, 6]
    early, complete = stored.selector.choose(score), late.selector.choose(score)
    assert early.weights
    assert complete.weights
    assert (early.step, early.reason) == (complete.step, complete.reason)
    assert (early.weights / WEIGHTS_FILE).read_bytes() == (complete.weights / WEIGHTS_FILE).read_bytes()
    # A training that has ended does not go on, whatever step it ended at.
    assert training.run("again", plan, stored, training.root / "early" / "4") == []


def test_a_worker_that_is_stopped_in_the_last_validation_completes_it_later(training: Training) -> None:
    plan = plan_of(2, training.model, prompts=["a {}", "a red {}"])
    stored = Stored(training.root / "job", plan)
    requests: list[bool] = []

    def stop() -> bool:
        """True once, within the last validation: a worker that is stopped later ends its process."""
        requests.append(stored.validations.image(2, 0).exists())
        return requests[-1] and sum(requests) == 1

    training.stop = stop
    with pytest.raises(TransientError, match="step 2 is saved"):
        training.run("first", plan, stored)
    assert (stored.validations.steps(), stored.candidates.steps()) == ([0, 1], [1])
    training.stop = lambda: False
    assert training.run("second", plan, stored, training.root / "first" / "2") == []
    assert (stored.validations.steps(), stored.candidates.steps()) == ([0, 1, 2], [1, 2])
    assert training.weights("second", 2) == (stored.candidates.folder(2) / WEIGHTS_FILE).read_bytes()


@pytest.mark.long
def test_a_job_publishes_the_best_step(tmp_path: Path) -> None:
    """With two workers and the scores of the real encoders."""
    job = {
        **JOB,
        "spec": {
            **JOB["spec"],
            "training": {
                "steps": 8,
                "learningRate": 1e-3,
                "deepspeed": {"stage": 1},  # each image takes a minute under ZeRO-3 on CPUs
                "validation": {"prompts": ["a {} on the beach", "a {}"], "everySteps": 2, "patience": 1},
            },
            "output": {"select": "Best", "keepCheckpoints": True},
            "cluster": {"workers": 2},
        },
    }
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job))
    code, text = run(tmp_path)
    assert code == 0, text
    out = JobFolder(tmp_path / "out")
    record = json.loads(out.completion_record(TrainerPhase.TRAIN).read_text())
    scores = [json.loads(line) for line in (out.validation / "scores.jsonl").read_text().splitlines()]
    by_step = {line.pop("step"): line for line in scores}
    final = standing(by_step, [2, 4, 6, 8], 1)
    assert (final.decided, record["selectedStep"]) == (True, final.best), text
    assert record["selection"] == explain(by_step, final, 8)
    assert f"selected step {final.best}" in text
    assert f"{record['selection']}." in (out.model / "README.md").read_text()
    status = json.loads(out.status.read_text())["status"]
    assert status["training"]["selectedStep"] == final.best
    assert candidates_of(out, record["key"]).steps() == [final.best]
    weights = load_file(candidates_of(out, record["key"]).folder(record["selectedStep"]) / WEIGHTS_FILE)
    published = load_file(out.trained / "unet" / "diffusion_pytorch_model.safetensors")
    for name, tensor in published.items():
        torch.testing.assert_close(tensor.float(), weights[f"trained.unet.{name}"], rtol=1e-2, atol=1e-3)
    code, text = run(tmp_path)
    assert (code, text.count("already complete")) == (0, 6), text
