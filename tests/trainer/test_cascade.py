"""A cascade of pixel diffusion models: DeepFloyd IF's base model, and its super-resolution model."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, IFPipeline, IFSuperResolutionPipeline
from hubserver import COMMIT, Hub
from inline_pool import InlinePool
from PIL import Image
from randomtraining import random_result
from test_plan import job_of
from torch import Tensor
from torch.nn import functional

from dreambooth_api.errors import UserError
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.families.registry import (
    base_digest,
    local_folder,
    open_family,
    pinned,
    stage_folders,
    weights_digest,
)
from dreambooth_trainer.images.augment import resized
from dreambooth_trainer.models.files import ADAPTER_FILE, local_pipeline_files
from dreambooth_trainer.phases import train
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import generate_missing
from dreambooth_trainer.phases.encode import class_images_of, encode, encode_shared
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.planning.fit import size_of
from dreambooth_trainer.planning.memory import ModelSize
from dreambooth_trainer.planning.model_facts import is_pixel_space, native_resolution
from dreambooth_trainer.planning.plan import Plan, SamplerSettings, fill_defaults
from dreambooth_trainer.report.loading import loading_code
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.memory_count import count_size
from dreambooth_trainer.training.messages import RECORDS_FILE, StepRecord
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

PROMPT = "a sks dog"
SECOND = "super_resolution"


@pytest.fixture(scope="module")
def cascade(tiny_if_model: Path, tiny_super_resolution_model: Path) -> BaseModelRef:
    return BaseModelRef(id=str(tiny_if_model), super_resolution=ModelSource(id=str(tiny_super_resolution_model)))


def plan_of(cascade: BaseModelRef, **training: Any) -> Plan:
    model = cascade.model_dump(by_alias=True, exclude_none=True)
    job = job_of({"model": model, "training": {"method": "LoRA", "steps": 2, "lora": {"rank": 4}, **training}})
    return fill_defaults(
        job,
        image_count=3,
        identifiers=["sks"],
        zero_stage=1,
        precision="fp32",
        native_resolution=native_resolution(Path(cascade.id)),
        pixel_space=is_pixel_space(Path(cascade.id)),
    )


def random_images(side: int, count: int = 3) -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def draw(base: Path, second: Path, adapter: Path | None = None) -> np.ndarray:
    """An image that plain diffusers draws with both stages, as the report of a job says."""
    pipelines: list[Any] = [
        IFPipeline.from_pretrained(base, dtype=torch.float32),
        IFSuperResolutionPipeline.from_pretrained(second, dtype=torch.float32),
    ]
    for pipeline, part in zip(pipelines, ("", SECOND), strict=True):
        pipeline.set_progress_bar_config(disable=True)
        if adapter is not None:
            pipeline.load_lora_weights(adapter / part, weight_name=ADAPTER_FILE)
            pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small")
    text, no_text = pipelines[0].encode_prompt(PROMPT)
    prompt = {"prompt_embeds": text, "negative_prompt_embeds": no_text, "num_inference_steps": 2}
    noise = torch.Generator().manual_seed(5)
    small = pipelines[0](**prompt, guidance_scale=3, generator=noise, output_type="pt").images
    return pipelines[1](image=small, **prompt, noise_level=0, generator=noise, output_type="np").images[0]


def test_the_loss_of_super_resolution_is_that_of_pairs_of_images(
    tiny_if_model: Path, tiny_super_resolution_model: Path
) -> None:
    family = open_family(tiny_super_resolution_model)
    stage = family.open(tiny_super_resolution_model, ["unet"])
    text = open_family(tiny_if_model).open(tiny_if_model, ["text_encoder"]).encode_prompts([PROMPT] * 3)
    examples = {**stage.encode_images(random_images(64)), **text}
    assert {name: tuple(value.shape[1:]) for name, value in examples.items() if name != "text_embeds"} == (
        family.image_shapes(tiny_super_resolution_model, 64)
    )
    generator = torch.Generator().manual_seed(3)
    noise = {name: torch.randn(3, *shape, generator=generator) for name, shape in stage.noise_shapes(examples).items()}
    with torch.no_grad():
        loss = stage.denoise(stage.modules, examples, noise, torch.tensor([0.0, 0.5, 0.999])).errors()
        expected = pair_loss(tiny_super_resolution_model, examples, noise)
    torch.testing.assert_close(loss, expected)


def pair_loss(folder: Path, examples: dict[str, Tensor], noise: dict[str, Tensor]) -> Tensor:
    """The loss for images and their small versions, which get the least noise and are inputs of the U-Net."""
    pipeline: Any = IFSuperResolutionPipeline.from_pretrained(folder, text_encoder=None, dtype=torch.float32)
    scheduler: Any = DDPMScheduler.from_config(pipeline.scheduler.config)
    clean, timesteps, level = examples["pixels"], torch.tensor([0, 500, 999]), torch.zeros(3, dtype=torch.long)
    small = functional.interpolate(clean, 16, mode="bilinear", antialias=True)
    enlarged = functional.interpolate(small, (64, 64), mode="bilinear", align_corners=True)
    condition = pipeline.image_noising_scheduler.add_noise(enlarged, noise["augmentation"], timesteps=level)
    inputs = torch.cat([scheduler.add_noise(clean, noise["noise"], timesteps), condition], dim=1)
    prediction = pipeline.unet(inputs, timesteps, examples["text_embeds"], class_labels=level).sample
    return (prediction[:, :3] - noise["noise"]).square().mean(dim=(1, 2, 3))


def test_images_are_generated_through_both_stages(tiny_if_model: Path, tiny_super_resolution_model: Path) -> None:
    loaded = load_pipeline(tiny_if_model, "fp32", "cpu", super_resolution=tiny_super_resolution_model)
    config = SamplingConfig(SamplerSettings(steps=2, guidance_scale=3), 64, "fp32", 2)
    requests = [ImageRequest("a", PROMPT, 5), ImageRequest("b", "a dog", 6)]
    images = [np.asarray(image) for image in sample_batch(loaded, config, requests)]
    expected = draw(tiny_if_model, tiny_super_resolution_model)
    np.testing.assert_allclose(images[0] / 255, expected, rtol=0, atol=1.5 / 255)
    (alone,) = sample_batch(loaded, config, requests[1:])
    np.testing.assert_allclose(np.asarray(alone, dtype=int), images[1], rtol=0, atol=1)
    fast = replace(config, sampler=SamplerSettings(steps=3, guidance_scale=3, scheduler="DPMSolverMultistep"))
    other = np.asarray(sample_batch(loaded, fast, requests[:1])[0], dtype=int)
    assert other.shape == (64, 64, 3)
    assert np.abs(other - images[0]).max() > 10


def test_published_stages_draw_the_same_in_plain_diffusers(
    tiny_if_model: Path, tiny_super_resolution_model: Path, published: tuple[Path, Path]
) -> None:
    merged, adapters = published
    assert not (merged / SECOND / "text_encoder").exists(), "T5 is published once"
    images = draw(merged, merged / SECOND)
    assert np.abs(images - draw(tiny_if_model, tiny_super_resolution_model)).max() > 10 / 255
    np.testing.assert_allclose(draw(tiny_if_model, tiny_super_resolution_model, adapters), images, rtol=0, atol=2 / 255)
    loaded = load_pipeline(tiny_if_model, "fp32", "cpu", adapters, tiny_super_resolution_model)
    config = SamplingConfig(SamplerSettings(steps=2, guidance_scale=3), 64, "fp32", 1)
    (image,) = sample_batch(loaded, config, [ImageRequest("a", PROMPT, 5)])
    np.testing.assert_allclose(np.asarray(image) / 255, images, rtol=0, atol=2 / 255)


@pytest.fixture(scope="module")
def published(
    tiny_if_model: Path, tiny_super_resolution_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Merged models and adapters of random weights, each of both stages."""
    root = tmp_path_factory.mktemp("published")
    merged, adapters = root / "merged", root / "adapters"
    for base, part in ((tiny_if_model, ""), (tiny_super_resolution_model, SECOND)):
        family = open_family(base)
        result = random_result(base, {"method": "LoRA", "lora": {"rank": 4, "alpha": 10}}, ["unet"])
        family.save(base, result.modules, merged / part)
        (adapters / part).mkdir(parents=True)
        family.save_adapter(result.adapters, adapters / part)
    return merged, adapters


@pytest.mark.parametrize("formats", [["diffusers"], ["lora"]], ids=lambda formats: formats[0])
def test_the_code_in_the_report_draws_an_image(
    cascade: BaseModelRef,
    published: tuple[Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    formats: list[str],
) -> None:
    plan, folder = plan_of(cascade), published[formats == ["lora"]]
    output = plan.spec.output.model_copy(update={"formats": formats})
    spec = plan.spec.model_copy(update={"output": output})
    plan = plan.model_copy(update={"job": plan.job.model_copy(update={"spec": spec})})
    code = loading_code(plan, str(folder), "IFPipeline")
    for argument in ('output_type="pt"', "noise_level=0"):
        assert argument in code
        code = code.replace(argument, f"{argument}, num_inference_steps=1")
    monkeypatch.chdir(tmp_path)
    exec(code, {})
    assert Image.open("image.png").size == (64, 64)
    assert code.count("fixed_small") == (2 if formats == ["lora"] else 0)


def test_each_stage_is_encoded_and_trained_in_a_folder_of_its_own(cascade: BaseModelRef, tmp_path: Path) -> None:
    plan, folder = plan_of(cascade, learningRate=1e-2), JobFolder(tmp_path)
    folder.prepared.mkdir(parents=True)
    for number, image in enumerate(random_images(64)):
        image.save(folder.prepared / f"0-{number:03d}.png")
    encode(plan, folder, [[PROMPT, "a sks dog on the beach", PROMPT]], [1, 1, 1], [])
    caches = [load_data(folder.of_stage(stage.stage).latents).instance_images for stage in plan.stages]
    assert [tuple(cache.images["pixels"].shape) for cache in caches] == [(3, 3, 16, 16), (3, 3, 64, 64)]
    assert torch.equal(caches[0].prompts["text_embeds"], caches[1].prompts["text_embeds"])
    for stage in plan.stages:
        own = folder.of_stage(stage.stage)
        engine, checkpoint = PlainEngine(stage, None), own.work / f"checkpoint-{stage.stage}"
        assert set(engine.module.trained) == {"unet"}, "T5 is not in memory while training"
        losses = [run_step(engine, stage, load_data(own.latents), step, 0, 1).tolist() for step in range(2)]
        assert np.isfinite(losses).all()
        checkpoint.mkdir()
        engine.save_weights(checkpoint, 0)
        save_trained_model(stage, checkpoint, own)
    trained = folder.trained
    assert (trained / ADAPTER_FILE).exists()
    assert (trained / SECOND / ADAPTER_FILE).exists()
    assert np.isfinite(draw(trained, trained / SECOND)).all()


def test_class_images_are_generated_once_and_encoded_for_each_stage(cascade: BaseModelRef, tmp_path: Path) -> None:
    sampler = SamplerSettings(steps=1, guidance_scale=1)
    update = {"num_class_images": 2, "class_image_sampler": sampler}
    plan, done = plan_of(cascade).model_copy(update=update), list[int]()
    pool: Any = InlinePool()
    context = Context(plan, JobFolder(tmp_path / "job"), (), str(tmp_path / "store"), {}, pool)
    class_images = class_images_of(context)
    generate_missing(context, "a dog", class_images[0].names, lambda *_, **__: None)
    encode_shared(context, class_images, done.append)
    assert done == [1, 2, 3, 4]
    (tmp_path / "job" / "work" / "prepared").mkdir(parents=True)
    for number, image in enumerate(random_images(64)):
        image.save(context.folder.prepared / f"0-{number:03d}.png")
    encode(plan, context.folder, [[PROMPT] * 3], [1, 1, 1], class_images)
    for stage in plan.stages:
        cached = load_data(context.folder.of_stage(stage.stage).latents).class_images
        assert cached is not None
        for row, name in enumerate(class_images[0].names):
            image = class_images[0].store.get(name)
            assert image.size == (64, 64)
            expected = np.asarray(resized(image, stage.resolution)) / 127.5 - 1
            np.testing.assert_allclose(cached.images["pixels"][row].permute(1, 2, 0), expected, atol=1e-6)
        assert cached.indices == ((0, 1),)


def test_stages_are_trained_in_turn_on_gpus_that_the_pool_has_released(
    cascade: BaseModelRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, events, reports = plan_of(cascade), list[str](), list[dict[str, Any]]()
    records = [StepRecord(step, 0.5, 0.5, None, 1e-6, 1) for step in (1, 2)]

    class Pool(InlinePool):
        def free_memory(self, release_models: object) -> None:
            events.append("release")

        def cores(self) -> int:
            return 1

        def call(self, function: Any, *arguments: Any) -> None:
            events.append(f"{function.__name__} {arguments[0].stage}".strip())

    def fit(trainer: Plan, actor: object, report: Any, waiting: object) -> Path:
        events.append(f"train {trainer.resolution}")
        report(records[0], None)
        return checkpoint

    checkpoint, pool = tmp_path / "checkpoint", Pool()
    checkpoint.mkdir()
    (checkpoint / RECORDS_FILE).write_text("".join(f"{json.dumps(asdict(record))}\n" for record in records))
    actors = SimpleNamespace(remote=lambda: None)
    nodes = SimpleNamespace(get_node_id=lambda: "node")
    fake = {"remote": lambda **_: lambda cls: actors, "get_runtime_context": lambda: nodes, "kill": lambda actor: None}
    fake["is_initialized"] = lambda: True
    monkeypatch.setattr(train, "ray", SimpleNamespace(**fake))
    monkeypatch.setattr(train, "build_trainer", lambda plan, *_, cores: plan)
    monkeypatch.setattr(train, "_fit", fit)
    context: Any = SimpleNamespace(plan=plan, folder=JobFolder(tmp_path), pool=pool, keys={TrainerPhase.TRAIN: "key"})
    progress: Any = SimpleNamespace(
        total=lambda count: events.append(f"{count} steps"),
        done=lambda step, **facts: reports.append({"step": step, **facts}),
    )
    assert train.TRAIN.run(context, progress) == {"steps": 4, "loss": 0.5}
    assert events == [
        "4 steps", "release", "train 16", "save_trained_model",
        "release", "train 64", f"save_trained_model {SECOND}",
    ]  # fmt: skip
    assert [(report["step"], report.get("saved_step")) for report in reports] == [(1, None), (2, 2), (3, None), (4, 4)]
    assert train.TRAIN.complete(context) is False, "the models are missing"
    assert len((tmp_path / "work" / SECOND / "losses.jsonl").read_text().splitlines()) == 2


def test_the_stages_have_their_own_resolutions_rates_and_models(cascade: BaseModelRef) -> None:
    base, second = plan_of(cascade).stages
    assert (base.model.id, base.resolution, base.stage, base.model.super_resolution) == (cascade.id, 16, "", None)
    assert cascade.super_resolution
    assert (second.model.id, second.resolution, second.stage) == (cascade.super_resolution.id, 64, SECOND)
    assert (base.learning_rate, second.learning_rate) == (5e-6, 1e-6)
    assert {stage.learning_rate for stage in plan_of(cascade, learningRate=1e-3).stages} == {1e-3}


def test_another_resolution_is_rejected(cascade: BaseModelRef) -> None:
    with pytest.raises(UserError, match=r"spec\.training\.resolution: 512: is not 4 x 16: .*; remove it"):
        plan_of(cascade, resolution=512)
    assert plan_of(cascade, resolution=64).resolution == 64


def test_the_stages_must_be_those_of_a_cascade(cascade: BaseModelRef, tiny_model: Path) -> None:
    assert list(stage_folders(cascade)) == ["", SECOND]
    second = cascade.super_resolution
    assert second
    with pytest.raises(UserError, match=r"superResolution\.id: .*needs a base model of class IFPipeline"):
        stage_folders(BaseModelRef(id=str(tiny_model), super_resolution=second))
    with pytest.raises(UserError, match=r"superResolution\.id: .*is a StableDiffusionPipeline; set a model of class"):
        stage_folders(BaseModelRef(id=cascade.id, super_resolution=ModelSource(id=str(tiny_model))))
    with pytest.raises(UserError, match=r"spec\.model\.id: .*set it as spec\.model\.superResolution\.id"):
        stage_folders(BaseModelRef(id=second.id))


def test_images_depend_on_the_weights_of_both_stages(cascade: BaseModelRef, tiny_if_model: Path) -> None:
    assert base_digest(BaseModelRef(id=cascade.id)) == weights_digest(tiny_if_model) != base_digest(cascade)


def test_the_copy_of_t5_in_the_super_resolution_model_is_not_used(tiny_super_resolution_model: Path) -> None:
    files = local_pipeline_files(tiny_super_resolution_model)
    parts = {path.relative_to(tiny_super_resolution_model).parts[0] for path in files}
    assert parts == {"model_index.json", "image_noising_scheduler", "scheduler", "unet"}


def test_both_models_are_pinned_and_t5_is_downloaded_once(
    hub: Hub, tiny_if_model: Path, tiny_super_resolution_model: Path
) -> None:
    hub.serve(tiny_if_model)
    hub.serve(tiny_super_resolution_model, "team/second")
    model = pinned(BaseModelRef(id="team/model", super_resolution=ModelSource(id="team/second")))
    assert model.revision == COMMIT
    assert model.super_resolution == ModelSource(id="team/second", revision=COMMIT)
    assert list(stage_folders(model)) == ["", SECOND]
    downloaded = local_folder(model.super_resolution)
    assert {path.name for path in downloaded.iterdir()} == {
        "image_noising_scheduler", "model_index.json", "scheduler", "unet"
    }  # fmt: skip


def test_the_stage_that_needs_most_memory_counts(cascade: BaseModelRef) -> None:
    base = ModelSize(
        trainable=1000,
        frozen=0,
        pipeline=1500,
        encoders=500,
        loaded=4000,
        assembled=4500,
        activations=1,
        backward=1,
        sampling=7,
        encoding=0,
    )
    second = replace(base, trainable=10, pipeline=10, assembled=40, encoders=0, sampling=70)
    plan = plan_of(cascade)

    def size(*sizes: ModelSize) -> ModelSize:
        return size_of(plan, lambda stage, images: sizes[bool(stage.stage)])

    assert size(base, second) == replace(base, pipeline=1510, sampling=70)
    wide = replace(second, activations=10**9)
    assert size(base, wide) == replace(wide, pipeline=1510, assembled=4500, encoders=500)


def test_memory_is_counted_for_each_stage(cascade: BaseModelRef, tiny_super_resolution_model: Path) -> None:
    _, second = plan_of(cascade).stages
    unet = open_family(tiny_super_resolution_model).open(tiny_super_resolution_model, ["unet"]).modules["unet"]
    size = count_size(second, tiny_super_resolution_model, 2, encoding_batch=1)
    assert size.pipeline == 4 * sum(parameter.numel() for parameter in unet.parameters())
    assert size.encoders == 0 < size.activations
