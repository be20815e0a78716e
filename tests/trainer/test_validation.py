"""Images of the model while it trains: they show the weights of a step, and change nothing."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray.train
import torch
from PIL import Image
from test_family_conformance import FAMILIES
from test_plan import make_plan
from test_training import make_data, with_prompts

from dreambooth_api.errors import TransientError
from dreambooth_trainer.families.base import FineTunedScheduler
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.report.course import collect_course
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.sampling.validation_set import is_due, validation_requests, validations_of
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.validations import Validations
from dreambooth_trainer.training import loop, validation
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import CheckpointMetadata, write_metadata
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.messages import RECORDS_FILE, History, LoopConfig, StepRecord
from dreambooth_trainer.training.plain_engine import PlainEngine
from dreambooth_trainer.training.validation import Validator

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

VALIDATION = {"prompts": ["a {} on the beach", "a red {}"], "everySteps": 2}
METHODS: dict[str, dict[str, Any]] = {
    "Full": {"method": "Full", "textEncoder": {"train": True}},
    "LoRA": {"method": "LoRA", "lora": {"rank": 4}},
    "TextualInversion": {"method": "TextualInversion", "textualInversion": {"vectors": 2}},
}


def plan_of(model: Path, **training: Any) -> Plan:
    given = {"resolution": 32, "steps": 3, "learningRate": 0.01, "validation": VALIDATION, **training}
    plan = make_plan({"model": {"id": str(model)}, "training": given})
    return plan.model_copy(update={"sampler": SamplerSettings(steps=2, guidance_scale=3)})


def never(flags: tuple[bool, ...]) -> list[bool]:
    return list(flags)


def train(plan: Plan, data: TrainingData, folder: Path, store: Validations | None) -> tuple[list[Any], Any]:
    engine, losses = PlainEngine(plan, None), []
    if plan.new_tokens:  # the random data do not contain them
        ids = engine.module.stage.encode_prompts(["a sks dog"], ["text_encoder"])["input_ids"]
        for kind in filter(None, (data.instance_images, data.class_images)):
            kind.prompts["input_ids"][:] = ids
    validator = None if store is None else Validator(plan, engine, store, 0, 1, never)
    for step in range(plan.steps + 1):
        if step:
            losses.append(run_step(engine, plan, data, step - 1, 0, 1).tolist())
        if validator is not None and validator.due(step):
            validator.run(step, lambda: False)
    folder.mkdir(parents=True)
    engine.save_weights(folder, 0)
    return losses, torch.get_rng_state()


def image_of(model: Path, plan: Plan, request: ImageRequest) -> Image.Image:
    """An image of a model, as the evaluation generates it after training."""
    config, loaded = SamplingConfig(plan.sampler, plan.resolution, "fp32", 1), load_pipeline(model, "fp32", "cpu")
    if isinstance(loaded.family, FineTunedScheduler):
        loaded.default_scheduler = loaded.family.fine_tuned_scheduler(loaded.default_scheduler)
    return sample_batch(loaded, config, [request])[0]


@pytest.mark.parametrize("method", METHODS)
def test_validation_shows_the_weights_and_changes_nothing(method: str, tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, **METHODS[method])
    data, folder = load_data(make_data(tmp_path / "latents")), JobFolder(tmp_path / "job")
    data = with_prompts(data, "input_ids" if plan.live_text_encoders else "text_embeds")
    store = validations_of(plan, folder, "key")
    store.prepare()
    results: list[Any] = []
    for name, validations in (("without", None), ("with", store)):
        torch.manual_seed(0)
        results.append(train(plan, data, tmp_path / name, validations))
    (without, state), (with_images, same_state) = results
    assert without == with_images
    assert torch.equal(state, same_state)
    weights = [(tmp_path / name / "trained-weights.safetensors").read_bytes() for name in ("without", "with")]
    assert weights[0] == weights[1]
    assert store.steps() == [0, 2, 3]
    request = validation_requests(plan)[0]
    assert request.prompt == "a sks dog on the beach"
    if method != "TextualInversion":  # the base model does not have the new tokens
        assert store.images(0)[0].tobytes() == image_of(tiny_model, plan, request).tobytes()
    save_trained_model(plan, tmp_path / "with", folder)
    trained = np.asarray(image_of(folder.trained, plan, request), dtype=float)
    assert np.abs(np.asarray(store.images(3)[0], dtype=float) - trained).max() <= 2, "adapters were merged"
    assert store.images(0)[0].tobytes() != store.images(3)[0].tobytes()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_every_family_validates(family: str, precision: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    model: Path = request.getfixturevalue(family)
    plan = plan_of(model, method="LoRA", precision=precision, lora={"rank": 4})
    store = Validations(tmp_path, "key", 2)
    store.prepare()
    engine = PlainEngine(plan, None)
    validator = Validator(plan, engine, store, 0, 1, never)
    validator.run(0, lambda: False)
    assert store.steps() == [0]
    if precision == "fp32":
        expected = image_of(model, plan, validation_requests(plan)[1])
        assert store.images(0)[1].tobytes() == expected.tobytes()
    assert all(module.training for module in engine.module.modules())


@pytest.mark.parametrize("fails", [False, True])
def test_sampling_leaves_no_trace(
    fails: bool, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also of a sampler that takes random numbers, or fails, and in a module that has been compiled."""
    plan = plan_of(tiny_model, precision="bf16")
    store, engine = Validations(tmp_path, "key", 2), PlainEngine(plan, None)
    store.prepare()
    denoiser: Any = engine.module.denoiser
    compiled, forward = object(), denoiser.forward
    denoiser._compiled_call_impl = compiled
    denoiser.conv_in.eval()  # stays as it is
    modes, state = [module.training for module in engine.module.modules()], torch.get_rng_state()

    def sample(*_: object) -> list[Image.Image]:
        torch.rand(1)
        assert not any(module.training for module in engine.module.modules())
        assert not torch.is_grad_enabled()
        assert denoiser._compiled_call_impl is None
        assert denoiser.forward != forward, "autocast"
        if fails:
            raise OSError("no space left")
        return [Image.new("RGB", (8, 8))]

    monkeypatch.setattr(validation, "sample_batch", sample)
    validator = Validator(plan, engine, store, 0, 1, never)
    with pytest.raises(OSError, match="no space left") if fails else contextlib.nullcontext():
        validator.run(0, lambda: False)
    assert [module.training for module in engine.module.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert (denoiser._compiled_call_impl, denoiser.forward) == (compiled, forward)


def test_images_that_exist_are_not_generated_again(tiny_model: Path, tmp_path: Path) -> None:
    plan = plan_of(tiny_model, method="LoRA")
    store, engine = Validations(tmp_path, "key", 2), PlainEngine(plan, None)
    store.prepare()
    stop = iter([True, False, False])
    Validator(plan, engine, store, 0, 1, never).run(2, lambda: next(stop))
    assert (store.image(2, 0).exists(), store.image(2, 1).exists()) == (True, False)
    assert store.steps() == []
    written = store.image(2, 0).stat().st_mtime_ns
    Validator(plan, engine, store, 0, 1, never).run(2, lambda: next(stop))
    assert store.steps() == [2]
    assert store.image(2, 0).stat().st_mtime_ns == written


@pytest.mark.parametrize(("stage", "expected"), [(2, {0: ["0"], 1: ["1"]}), (3, {0: ["0", "1"], 1: []})])
def test_workers_share_the_images_unless_weights_are_partitioned(
    stage: int, expected: dict[int, list[str]], tiny_model: Path, tmp_path: Path
) -> None:
    plan = plan_of(tiny_model, method="LoRA").model_copy(update={"zero_stage": stage})
    engine = PlainEngine(plan, None)
    for rank, names in expected.items():
        store, synchronized = Validations(tmp_path / str(rank), "key", 2), list[bool]()

        def agree(flags: tuple[bool, ...], calls: list[bool] = synchronized) -> list[bool]:
            calls.append(any(flags))
            return list(flags)

        Validator(plan, engine, store, rank, 2, agree).run(0, lambda: False)
        assert sorted(path.stem for path in (tmp_path / str(rank)).rglob("*.png")) == names
        assert len(synchronized) == (2 if stage == 2 else 3), "before the first image and after each"


def test_validations_of_another_training_are_removed(tmp_path: Path) -> None:
    old, new = (Validations(tmp_path / "validation", key, 1) for key in ("old", "new"))
    old.prepare()
    old.put(0, 0, Image.new("RGB", (8, 8)))
    old.add_scores(0, {"dino": 0.5})
    old.prepare()
    assert (old.steps(), old.scores()) == ([0], {0: {"dino": 0.5}})
    assert (new.steps(), new.scores()) == ([], {})
    (old.root / "notes.txt").write_text("mine")
    new.prepare()
    assert {path.name for path in old.root.iterdir()} == {"key", "notes.txt"}
    assert (old.steps(), new.steps(), new.scores()) == ([], [], {})


def test_images_that_cannot_be_deleted_are_not_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old, new = (Validations(tmp_path / "validation", key, 1) for key in ("old", "new"))
    old.prepare()
    old.put(0, 0, Image.new("RGB", (8, 8)))

    real = os.unlink

    def unlink(path: Any, **options: Any) -> None:
        if Path(path).name == "0.png":
            raise PermissionError("not permitted")
        real(path, **options)

    monkeypatch.setattr(os, "unlink", unlink)
    with pytest.raises(PermissionError, match="not permitted"):
        new.prepare()
    assert (old.steps(), new.steps()) == ([0], [])


def test_other_images_have_another_key_and_the_same_ones_the_same(tmp_path: Path) -> None:
    def key(train_key: str = "key", guidance_scale: float = 3, **training: Any) -> str:
        plan = make_plan({"training": {"steps": 3, "validation": {**VALIDATION, **training}}})
        sampler = SamplerSettings(steps=2, guidance_scale=guidance_scale)
        return validations_of(plan.model_copy(update={"sampler": sampler}), JobFolder(tmp_path), train_key).key

    assert key() == key(everySteps=3), "other steps of the same images"
    assert len({key(), key("other"), key(guidance_scale=4), key(prompts=["a {} on the beach", "a blue {}"])}) == 4


def test_each_prompt_and_subject_has_its_own_noise() -> None:
    subjects = [
        {"class": "dog", "identifier": name, "images": {"uri": "builtin:sprites/dog-pink-blue"}}
        for name in ("sks", "zwx")
    ]
    training = {"validation": {"prompts": ["a {}", "a {}"], "everySteps": 100}}
    requests = validation_requests(make_plan({"subject": None, "subjects": subjects, "training": training}))
    assert [(request.name, request.prompt) for request in requests] == [
        ("0", "a sks dog"),
        ("1", "a sks dog"),
        ("2", "a zwx dog"),
        ("3", "a zwx dog"),
    ]
    assert len({request.seed for request in requests}) == 4


def test_scores_are_kept_by_step(tmp_path: Path) -> None:
    store = Validations(tmp_path, "key", 1)
    store.prepare()
    for step, value in ((10, 0.5), (0, 0.25), (10, 0.75)):
        store.add_scores(step, {"dino": value})
    lines = [json.loads(line) for line in (tmp_path / "scores.jsonl").read_text().splitlines()]
    assert lines == [{"step": 0, "dino": 0.25}, {"step": 10, "dino": 0.75}]


def test_the_course_has_scores_and_only_as_many_pixels_as_it_shows(tmp_path: Path) -> None:
    plan = make_plan({"training": {"steps": 3, "validation": VALIDATION}})
    store = Validations(tmp_path, "key", 2)
    store.prepare()
    for number, side in ((0, 1024), (1, 32)):
        store.put(0, number, Image.new("RGB", (side, side)))
    for step in (0, 3):
        store.add_scores(step, {"dino": 0.5, "clipT": 0.25})
    course = collect_course(plan, store)
    assert course
    assert all(f">{label}</text>" in course.scores_svg for label in ("DINO", "CLIP-T"))
    assert [image.size for row in course.rows for image in row.images] == [(256, 256), (32, 32)]


def test_the_first_and_the_last_step_are_validated(tiny_model: Path) -> None:
    plan = plan_of(tiny_model)
    assert [step for step in range(4) if is_due(plan, step)] == [0, 2, 3]
    assert not is_due(plan.model_copy(update={"stage": "super_resolution"}), 0)
    assert not is_due(plan_of(tiny_model, validation=None), 0)


@dataclass
class FakeSaver:
    """Writes checkpoints at once, into folders named after their steps."""

    engine: PlainEngine
    root: Path

    def save(self, metadata: CheckpointMetadata, records: list[StepRecord]) -> None:
        self.write(metadata, records, self.engine.save)

    save_now = save

    def save_weights(self, metadata: CheckpointMetadata, records: list[StepRecord]) -> None:
        self.write(metadata, records, lambda folder: self.engine.save_weights(folder, 0))

    def write(self, metadata: CheckpointMetadata, records: list[StepRecord], write: Callable[[Path], None]) -> None:
        folder = self.root / str(metadata.step)
        folder.mkdir(parents=True)
        write(folder)
        write_metadata(folder, metadata)
        (folder / RECORDS_FILE).write_text("".join(json.dumps(asdict(record)) + "\n" for record in records))


def test_the_loop_validates_before_it_saves_and_continues_after_an_interruption(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_model, method="LoRA", checkpointEverySteps=2, reportTo=["tensorboard"])
    cached = with_prompts(load_data(make_data(tmp_path / "latents")), "text_embeds")
    store, roots = Validations(tmp_path / "job", "key", 2), [tmp_path / "first", tmp_path / "second"]
    store.prepare()
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(loop, "load_data", lambda *_: cached)
    monkeypatch.setattr(loop, "stop_requested", lambda rank: False)
    seen: list[list[int]] = []

    def run(root: Path, checkpoint: Path | None) -> list[Any]:
        messages: list[Any] = []

        class Saver(FakeSaver):
            def write(
                self, metadata: CheckpointMetadata, records: list[StepRecord], write: Callable[[Path], None]
            ) -> None:
                seen.append(store.steps())
                super().write(metadata, records, write)

        monkeypatch.setattr(loop, "CheckpointSaver", lambda engine, rank, report: Saver(engine, root))
        monkeypatch.setattr(loop, "_last_checkpoint", lambda: contextlib.nullcontext(checkpoint))
        loop.train_loop(LoopConfig(plan, tmp_path, 1, messages.append, store))
        return messages

    messages = run(roots[0], None)
    assert seen == [[0, 2], [0, 2, 3]], "the images of a step are complete when its checkpoint is saved"
    history = [[record.step for record in message.records] for message in messages if isinstance(message, History)]
    assert history == [[1], [2], [3]]
    store.image(2, 1).unlink()  # as if the training had been killed
    store.image(3, 0).unlink()
    again = run(roots[1], roots[0] / "2")
    assert seen[2:] == [[0, 2, 3]]
    assert [len(message.records) for message in again if isinstance(message, History)] == [3], "from the first step"
    weights = [(root / "3" / "trained-weights.safetensors").read_bytes() for root in roots]
    assert weights[0] == weights[1]


def test_a_worker_that_is_stopped_in_the_first_validation_trains_no_step(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_of(tiny_model, method="LoRA")
    store = Validations(tmp_path / "job", "key", 2)
    store.prepare()
    stop = iter([True, False])
    context = SimpleNamespace(get_world_rank=lambda: 0, get_world_size=lambda: 1)
    monkeypatch.setattr(ray.train, "get_context", lambda: context)
    monkeypatch.setattr(ray.train, "get_all_reported_checkpoints", lambda mode: [])
    monkeypatch.setattr(loop, "load_data", lambda *_: None)
    monkeypatch.setattr(loop, "run_step", lambda *_: pytest.fail("the images of step 0 would never be complete"))
    monkeypatch.setattr(loop, "stop_requested", lambda rank: next(stop))
    monkeypatch.setattr(loop, "_last_checkpoint", lambda: contextlib.nullcontext(None))
    with pytest.raises(TransientError, match="step 0 is saved"):
        loop.train_loop(LoopConfig(plan, tmp_path, 1, lambda message: None, store))
    assert (store.image(0, 0).exists(), store.image(0, 1).exists()) == (True, False)
