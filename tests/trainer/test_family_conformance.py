"""What every model family promises. A new family adds its tiny model to FAMILIES of `examplelosses.py`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from examplelosses import FAMILIES, PROMPTS, U
from familycases import LORA, draw, open_all, plain
from PIL import Image
from randomtraining import random_result
from safetensors import safe_open
from test_plan import make_plan
from torch import Tensor

from dreambooth_trainer.families.base import AdapterInfo, KohyaWriter, SingleFileWriter, trained_modules
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.training.memory_count import count_size
from dreambooth_trainer.training.module import prepare_module

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]


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


def random_noise(shapes: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {key: torch.randn(len(PROMPTS), *shape, generator=generator) for key, shape in shapes.items()}


def test_loss_and_gradients_are_those_of_the_example_script(name: str, model: Path, images: list[Image.Image]) -> None:
    family, stage = open_all(model)
    examples = stage.encode_images(images) | stage.encode_prompts(PROMPTS)
    noise = random_noise(stage.noise_shapes(examples))
    loss = stage.denoise(stage.modules, examples, noise, U).errors()
    pipeline_class, example_loss = FAMILIES[name]
    pipeline = plain(pipeline_class, model)
    pixels = torch.stack([torch.tensor(np.asarray(image)) for image in images]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        clean = clean_examples(pipeline, pixels, noise)
    expected = example_loss(pipeline, clean, noise["noise"])
    torch.testing.assert_close(loss, expected)
    gradients: list[dict[str, Tensor]] = []
    for module, value in ((stage.modules[family.denoiser], loss), (getattr(pipeline, family.denoiser), expected)):
        value.mean().backward()
        gradients.append({key: p.grad for key, p in module.named_parameters() if p.grad is not None})
    assert gradients[0]
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-3, atol=1e-4)


def clean_examples(pipeline: Any, pixels: Tensor, noise: dict[str, Tensor]) -> Tensor:
    """Latents of images, or their pixels if the model has no autoencoder."""
    if not hasattr(pipeline, "vae"):
        return pixels
    latents = pipeline.vae.encode(pixels).latent_dist
    sample, config = latents.mean + latents.std * noise["latent"], pipeline.vae.config
    return (sample - (config.shift_factor or 0)) * config.scaling_factor


def test_trained_text_encoders_give_the_loss_of_cached_embeddings(model: Path, images: list[Image.Image]) -> None:
    family, stage = open_all(model)
    encoded = stage.encode_images(images)
    assert {key: tuple(t.shape[1:]) for key, t in encoded.items()} == family.image_shapes(model, 32)
    u, losses = torch.tensor([0.1, 0.5, 0.9]), []
    for live in ((), family.trainable_text_encoders):
        examples = encoded | stage.encode_prompts(PROMPTS, live)
        losses.append(stage.denoise(stage.modules, examples, random_noise(stage.noise_shapes(examples)), u).errors())
    torch.testing.assert_close(losses[0], losses[1])
    if not family.trainable_text_encoders:
        return
    # Only the token IDs are needed of encoders that are trained.
    frozen = set(family.text_encoders) - set(family.trainable_text_encoders)
    tokens = family.open(model, frozen).encode_prompts(PROMPTS, family.trainable_text_encoders)
    assert any(not tensor.is_floating_point() for tensor in tokens.values())


def test_every_module_with_lora_layers_learns(model: Path, images: list[Image.Image]) -> None:
    family, stage = open_all(model)
    names = trained_modules(family, text_encoders=True)
    examples = stage.encode_images(images) | stage.encode_prompts(PROMPTS, family.trainable_text_encoders)
    plan = make_plan({"model": {"id": str(model)}, "training": {**LORA, "textEncoder": {"train": True}}})
    prepare_module(plan, family, stage)
    noise = random_noise(stage.noise_shapes(examples))
    stage.denoise(stage.modules, examples, noise, torch.tensor([0.1, 0.5, 0.9])).errors().sum().backward()
    for part in names:
        learned = {key for key, p in stage.modules[part].named_parameters() if p.grad is not None and p.grad.any()}
        assert learned, part
        assert all(".lora_B." in key for key in learned), "A has no gradient while B is zero"


def test_the_plan_counts_the_parameters_of_the_model(model: Path) -> None:
    family, stage = open_all(model)
    sizes = {key: sum(p.numel() for p in module.parameters()) for key, module in stage.modules.items()}
    spec = {"model": {"id": str(model)}, "training": {"resolution": 32, "textEncoder": {"train": True}}}
    size = count_size(make_plan(spec), model, 2, encoding_batch=1)
    assert size.assembled == 4 * sum(sizes.values())
    assert size.trainable == sum(sizes[part] for part in trained_modules(family, text_encoders=True))


def test_plain_diffusers_draws_the_same_with_every_published_format(name: str, model: Path, tmp_path: Path) -> None:
    family = open_family(model)
    result = random_result(model, LORA, trained_modules(family, text_encoders=True))
    merged, kohya = tmp_path / "merged", tmp_path / "my-dog.safetensors"
    family.save(model, result.modules, merged)
    family.save_adapter(result.adapters, tmp_path)
    images = draw(merged)
    assert np.abs(draw(model) - images).max() > 10 / 255
    np.testing.assert_allclose(draw(model, tmp_path / ADAPTER_FILE), images, rtol=0, atol=1 / 255)
    if isinstance(family, KohyaWriter):
        info = AdapterInfo("my-dog", "b", "a dog", 32)
        family.save_kohya_adapter(tmp_path_with_configs(tmp_path, merged), kohya, info)
        np.testing.assert_allclose(draw(model, kohya), images, rtol=0, atol=1 / 255)
        with safe_open(kohya, "pt") as file:
            assert file.metadata()["ss_network_dim"] == "4"
    if not isinstance(family, SingleFileWriter):
        return
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


def test_a_dora_adapter_draws_the_images_of_the_merged_model(model: Path, tmp_path: Path) -> None:
    family, merged = open_family(model), tmp_path / "merged"
    result = random_result(model, {**LORA, "method": "DoRA"}, trained_modules(family, text_encoders=True))
    with_magnitudes = {
        part for part, (weights, _) in result.adapters.items() if "lora_magnitude_vector" in str(weights)
    }
    assert with_magnitudes == {family.denoiser}
    family.save(model, result.modules, merged)
    family.save_adapter(result.adapters, tmp_path)
    images = draw(merged)
    assert np.abs(draw(model) - images).max() > 10 / 255
    np.testing.assert_allclose(draw(model, tmp_path / ADAPTER_FILE), images, rtol=0, atol=1 / 255)
