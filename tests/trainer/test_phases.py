"""Completion of phases, and images of the evaluation."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from imagefiles import encoded
from inline_pool import InlinePool
from PIL import Image
from rich.console import Console
from test_plan import make_plan as plan_of

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.images import RawImage
from dreambooth_trainer.metrics import encoders, measure
from dreambooth_trainer.phases import evaluate, train
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import CLASS_IMAGES
from dreambooth_trainer.phases.encode import ENCODE
from dreambooth_trainer.phases.evaluate import evaluation_store
from dreambooth_trainer.phases.prepare import PREPARE
from dreambooth_trainer.phases.publish import PUBLISH
from dreambooth_trainer.phases.train import TRAIN
from dreambooth_trainer.planning.plan import Plan, SamplerSettings, fill_defaults
from dreambooth_trainer.progress.console import LineReporter
from dreambooth_trainer.runner import run_phase
from dreambooth_trainer.sampling.evaluation_set import MODELS, image_requests
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion
from dreambooth_trainer.training.messages import CheckpointSaved, StepRecord


def make_plan(*prompts: str) -> Plan:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "my-dog"},
            "spec": {
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "evaluation": {"prompts": list(prompts), "imagesPerPrompt": 2},
            },
        }
    )
    return fill_defaults(job, image_count=4, identifiers=["sks"], zero_stage=1, precision="fp32")


def test_an_interrupted_phase_is_not_complete(tmp_path: Path) -> None:
    context: Any = SimpleNamespace(folder=JobFolder(tmp_path), keys={TrainerPhase.ENCODE: "key"})
    atomic_write(context.folder.completion_record(TrainerPhase.ENCODE), json.dumps({"key": "key"}))
    assert read_completion(context.folder, context.keys, TrainerPhase.ENCODE)

    def overwrite_and_fail(*_: object) -> dict[str, Any]:
        # The output no longer belongs to the inputs of the completion record.
        atomic_write(context.folder.latents, b"other")
        raise OSError("the node was lost")

    phase = Phase(TrainerPhase.ENCODE, lambda _: None, lambda _: True, overwrite_and_fail)
    with pytest.raises(OSError, match="the node was lost"):
        run_phase(phase, context, LineReporter(Console()))
    assert read_completion(context.folder, context.keys, TrainerPhase.ENCODE) is None


class CountedProgress:
    """The progress of a phase, of which only the last report is kept."""

    def __init__(self) -> None:
        self.count, self.facts = 0, dict[str, object]()

    def total(self, count: int) -> None: ...

    def done(self, count: int, **facts: object) -> None:
        self.count, self.facts = count, facts


def test_scores_compare_with_the_photos_and_not_with_the_crops(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wide = Image.new("RGB", (90, 30), "red")
    wide.paste("blue", (30, 0, 60, 30))  # the center square
    folder, plan = JobFolder(tmp_path), make_plan("a {} on the beach").model_copy(update={"resolution": 16})
    context: Any = SimpleNamespace(plan=plan, folder=folder, images=((RawImage("a.png", encoded(wide)),),))
    assert not PREPARE.complete(context)
    PREPARE.run(context, CountedProgress())
    assert PREPARE.complete(context)
    assert Image.open(folder.prepared / "0-000.png").size == (16, 16)
    seen: list[Any] = []
    monkeypatch.setattr(encoders, "load_encoders", lambda *arguments: None)
    monkeypatch.setattr(evaluate, "work_device", lambda: "cpu")
    monkeypatch.setattr(evaluate, "load_images", lambda *arguments: [])
    monkeypatch.setattr(measure, "measure", lambda found, real, *rest: seen.extend(real))
    evaluate.score_images(plan, folder, "after", ImageStore(str(tmp_path / "after")), [0], {})
    assert [image.size for image in seen] == [(90, 30)]


def test_training_reports_samples_of_the_global_batch_world_size_and_saved_step() -> None:
    plan, progress = make_plan("a {} on the beach").model_copy(update={"batch_size": 8}), CountedProgress()
    record, facts = StepRecord(3, 0.5, 0.25, 0.25, 1e-6, world_size=4), {"loss": 0.5, "samples": 24, "world_size": 4}
    report = train._Progress(progress, plan, 0).report
    report(record, None)
    assert (progress.count, progress.facts) == (3, facts)
    report(record, CheckpointSaved(2))
    assert progress.facts == {**facts, "saved_step": 2}


def test_validation_changes_the_report_only_and_trackers_change_nothing(tmp_path: Path) -> None:
    keys = {phase: phase.value for phase in TrainerPhase}
    pool: Any = InlinePool()

    def inputs(phase: Phase, **training: Any) -> str:
        context = Context(plan_of({"training": training}), JobFolder(tmp_path), ((),), "store", keys, pool)
        return json.dumps(phase.inputs(context))

    validation = {"prompts": ["a {} on the beach"], "everySteps": 100}
    for phase in (PREPARE, CLASS_IMAGES, ENCODE, TRAIN):
        assert inputs(phase) == inputs(phase, validation=validation) == inputs(phase, reportTo=["tensorboard"])
    assert inputs(PUBLISH) == inputs(PUBLISH, reportTo=["tensorboard"]) != inputs(PUBLISH, validation=validation)


def test_publishing_depends_on_the_selection_only_by_the_training(tmp_path: Path) -> None:
    """A job that has trained with the same result does not publish again."""

    def inputs(phase: Phase, select: str, **more: Any) -> str:
        validation = {"prompts": ["a {} on the beach"], "everySteps": 100, **more}
        plan = plan_of({"training": {"validation": validation}, "output": {"select": select}})
        keys = {phase: phase.value for phase in TrainerPhase}
        pool: Any = InlinePool()
        return json.dumps(phase.inputs(Context(plan, JobFolder(tmp_path), ((),), "store", keys, pool)))

    for phase, expected in ((TRAIN, 3), (PUBLISH, 1)):
        assert len({inputs(phase, "Last"), inputs(phase, "Best"), inputs(phase, "Best", patience=2)}) == expected


def test_both_models_start_from_the_same_noise() -> None:
    plan = make_plan("a {} on the beach")
    before, after = ({r.name: r for r in image_requests(plan, model)} for model in MODELS)
    assert before.keys() < after.keys()
    assert all(after[name] == request for name, request in before.items())
    assert len({request.seed for request in after.values()}) == len(after)


def test_image_names_depend_on_the_prompt_and_not_on_its_position() -> None:
    first = {r.prompt: r for r in image_requests(make_plan("a {} on the beach", "a {} in the snow"), "before")}
    second = {r.prompt: r for r in image_requests(make_plan("a {} in the snow", "a red {}"), "before")}
    assert first["a sks dog in the snow"] == second["a sks dog in the snow"]
    assert first["a sks dog on the beach"].name not in {r.name for r in second.values()}


def test_a_repeated_prompt_is_generated_once() -> None:
    names = [r.name for r in image_requests(make_plan("a {}", "a {}", "a {} on the beach"), "after")]
    assert len(names) == len(set(names)) == len(image_requests(make_plan("a {} on the beach"), "after"))


@pytest.mark.parametrize(
    "change",
    [
        {"sampler": SamplerSettings(steps=7, guidance_scale=3)},
        {"sampler": SamplerSettings(steps=20, guidance_scale=4)},
        {"resolution": 64},
        {"precision": "bf16"},
    ],
)
def test_other_sampling_settings_give_another_store(tmp_path: Path, change: dict[str, object]) -> None:
    def urls(plan: Plan, train: str = "t", base: str = "b") -> set[str]:
        context: Any = SimpleNamespace(
            plan=plan, folder=JobFolder(tmp_path), keys={TrainerPhase.TRAIN: train}, base_digest=base
        )
        return {evaluation_store(context, model).url for model in MODELS}

    plan = make_plan("a {}")
    assert urls(plan) == urls(plan)
    assert not urls(plan) & urls(plan.model_copy(update=change))
    assert len(urls(plan) & urls(plan, train="u")) == len(urls(plan) & urls(plan, base="c")) == 1
