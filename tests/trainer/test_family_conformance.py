"""What every model family promises. A new family adds its tiny model to FAMILIES."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDPMScheduler, DiffusionPipeline, StableDiffusionPipeline, StableDiffusionXLPipeline
from PIL import Image
from randomtraining import random_result
from safetensors import safe_open
from test_plan import make_plan
from torch import Tensor

from dreambooth_trainer.families.base import AdapterInfo, Family, trained_modules
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.phases.encode import encode
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.memory_count import count_size
from dreambooth_trainer.training.module import prepare_module
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

PROMPTS = ["a sks dog", "a dog", "a dog on the beach"]
LORA = {"method": "LoRA", "lora": {"rank": 4, "alpha": 10}}


def sd_prediction(pipeline: Any, noisy: Tensor, timesteps: Tensor) -> Tensor:
    text, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    return pipeline.unet(noisy, timesteps, text).sample


def xl_prediction(pipeline: Any, noisy: Tensor, timesteps: Tensor) -> Tensor:
    """As in diffusers' train_text_to_image_sdxl.py, without crops."""
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    time_ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * len(PROMPTS))
    conditions = {"text_embeds": pooled, "time_ids": time_ids}
    return pipeline.unet(noisy, timesteps, text, added_cond_kwargs=conditions).sample


# By fixture: the plain pipeline, and its prediction in the example script.
FAMILIES: dict[str, tuple[Any, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "tiny_model": (StableDiffusionPipeline, sd_prediction),
    "tiny_xl_model": (StableDiffusionXLPipeline, xl_prediction),
}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(request: pytest.FixtureRequest, name: str) -> Path:
    return request.getfixturevalue(name)


@pytest.fixture
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def open_all(folder: Path) -> tuple[Family, Any]:
    family = open_family(folder)
    return family, family.open(folder, (family.denoiser, *family.text_encoders, *family.image_encoders))


def random_noise(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(len(PROMPTS), *shape, generator=generator) for key, shape in shapes.items()}


def test_the_loss_is_that_of_the_example_script(name: str, model: Path, images: list[Image.Image]) -> None:
    _, stage = open_all(model)
    examples = stage.encode_images(images) | stage.encode_prompts(PROMPTS)
    noise = random_noise(stage.noise_shapes(examples))
    loss = stage.loss(stage.modules, examples, noise, torch.tensor([0.0, 0.5, 0.999]))
    pipeline_class, predict = FAMILIES[name]
    pipeline = pipeline_class.from_pretrained(model)
    scheduler, timesteps = DDPMScheduler.from_config(pipeline.scheduler.config), torch.tensor([0, 500, 999])
    with torch.no_grad():
        pixels = torch.stack([torch.tensor(np.asarray(image)) for image in images]).permute(0, 3, 1, 2) / 127.5 - 1
        latents = pipeline.vae.encode(pixels).latent_dist
        clean = (latents.mean + latents.std * noise["latent"]) * pipeline.vae.config.scaling_factor
        noisy: Any = scheduler.add_noise(clean, noise["noise"], timesteps)  # type: ignore[arg-type]
        expected = (predict(pipeline, noisy, timesteps) - noise["noise"]).square().mean(dim=(1, 2, 3))
    torch.testing.assert_close(loss.detach(), expected)


def test_trained_text_encoders_give_the_loss_of_cached_embeddings(model: Path, images: list[Image.Image]) -> None:
    family, stage = open_all(model)
    encoded = stage.encode_images(images)
    assert {key: tuple(t.shape[1:]) for key, t in encoded.items()} == family.image_shapes(model, 32)
    u, losses = torch.tensor([0.1, 0.5, 0.9]), []
    for live in ((), family.text_encoders):
        examples = encoded | stage.encode_prompts(PROMPTS, live)
        losses.append(stage.loss(stage.modules, examples, random_noise(stage.noise_shapes(examples)), u))
    torch.testing.assert_close(losses[0], losses[1])
    # Only the token IDs are needed of encoders that are trained.
    tokens = family.open(model, family.image_encoders).encode_prompts(PROMPTS, family.text_encoders)
    assert all(not tensor.is_floating_point() for tensor in tokens.values())


def test_every_module_with_lora_layers_learns(model: Path, images: list[Image.Image]) -> None:
    family, stage = open_all(model)
    names = trained_modules(family, text_encoders=True)
    examples = stage.encode_images(images) | stage.encode_prompts(PROMPTS, family.text_encoders)
    plan = make_plan({"model": {"id": str(model)}, "training": {**LORA, "textEncoder": {"train": True}}})
    prepare_module(plan, family, stage)
    noise = random_noise(stage.noise_shapes(examples))
    stage.loss(stage.modules, examples, noise, torch.tensor([0.1, 0.5, 0.9])).sum().backward()
    for part in names:
        learned = {key for key, p in stage.modules[part].named_parameters() if p.grad is not None and p.grad.any()}
        assert learned, part
        assert all(".lora_B." in key for key in learned), "A has no gradient while B is zero"


def test_the_plan_counts_the_parameters_of_the_model(model: Path) -> None:
    family, stage = open_all(model)
    sizes = {key: sum(p.numel() for p in module.parameters()) for key, module in stage.modules.items()}
    spec = {"model": {"id": str(model)}, "training": {"resolution": 32, "textEncoder": {"train": True}}}
    size = count_size(make_plan(spec), model, 2, encoding_batch=1)
    assert size.total == sum(sizes.values())
    assert size.trainable == sum(sizes[part] for part in trained_modules(family, text_encoders=True))


def draw(model: Path | Any, adapter: Path | None = None) -> np.ndarray:
    """An image that a plain diffusers pipeline, or the one in a folder, draws."""
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.float32) if isinstance(model, Path) else model
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
    pipeline.set_progress_bar_config(disable=True)
    noise = torch.Generator().manual_seed(0)
    size = {"height": 32, "width": 32}
    return pipeline("a sks dog", num_inference_steps=4, generator=noise, output_type="np", **size).images


def test_plain_diffusers_draws_the_same_with_every_published_format(name: str, model: Path, tmp_path: Path) -> None:
    family = open_family(model)
    result = random_result(model, LORA, trained_modules(family, text_encoders=True))
    merged, kohya = tmp_path / "merged", tmp_path / "my-dog.safetensors"
    family.save(model, result.modules, merged)
    family.save_adapter(result.adapters, tmp_path)
    family.save_kohya_adapter(tmp_path_with_configs(tmp_path, merged), kohya, AdapterInfo("my-dog", "b", "a dog", 32))
    images = draw(merged)
    assert np.abs(draw(model) - images).max() > 10 / 255
    for adapter in (tmp_path / ADAPTER_FILE, kohya):
        np.testing.assert_allclose(draw(model, adapter), images, rtol=0, atol=1 / 255)
    with safe_open(kohya, "pt") as file:
        assert file.metadata()["ss_network_dim"] == "4"
    single = tmp_path / "single" / "my-dog.safetensors"
    single.parent.mkdir()
    family.save_single_file(merged, single)
    pipeline = FAMILIES[name][0].from_single_file(single, config=str(model), local_files_only=True, dtype=torch.float32)
    np.testing.assert_allclose(draw(pipeline), images, rtol=0, atol=1e-5)


def tmp_path_with_configs(folder: Path, model: Path) -> Path:
    """The adapter beside the configurations of a model, as in the folder of a trained model."""
    for path in model.glob("*/*config.json"):
        (folder / path.parent.name).mkdir(exist_ok=True)
        (folder / path.parent.name / path.name).write_text(json.dumps(json.loads(path.read_text())))
    return folder


@pytest.mark.parametrize("method", ["Full", "LoRA"])
def test_a_job_is_encoded_trained_and_saved(
    model: Path, images: list[Image.Image], tmp_path: Path, method: str
) -> None:
    training = {"resolution": 32, "steps": 2, "learningRate": 1e-2, "method": method, "textEncoder": {"train": True}}
    plan = make_plan({"model": {"id": str(model)}, "training": training})
    folder, checkpoint = JobFolder(tmp_path), tmp_path / "checkpoint"
    for path in (folder.prepared, checkpoint):
        path.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder.prepared / f"{number:03d}.png")
    encode(plan, folder, [PROMPTS], [])
    engine, data = PlainEngine(plan, None), load_data(folder.latents)
    losses = [run_step(engine, plan, data, step, 0, 1).tolist() for step in range(2)]
    assert np.isfinite(losses).all()
    engine.save_weights(checkpoint, 0)
    save_trained_model(plan, checkpoint, folder)
    assert np.abs(draw(folder.trained) - draw(model)).max() > 1 / 255
    if method == "LoRA":
        np.testing.assert_allclose(draw(model, folder.trained / ADAPTER_FILE), draw(folder.trained), atol=1 / 255)
