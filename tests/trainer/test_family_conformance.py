"""What every model family promises. A new family adds its tiny model to FAMILIES."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    DDPMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    IFPipeline,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    ZImagePipeline,
)
from PIL import Image
from randomtraining import random_result
from safetensors import safe_open
from safetensors.torch import load_file
from test_plan import make_plan
from torch import Tensor

from dreambooth_api.methods import METHODS
from dreambooth_trainer.families.base import AdapterInfo, Family, KohyaWriter, SingleFileWriter, trained_modules
from dreambooth_trainer.families.capabilities import capability_issues
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.phases.encode import encode
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.sampling.pipeline import load_pipeline
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.memory_count import count_size
from dreambooth_trainer.training.module import prepare_module
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

PROMPTS = ["a sks dog", "a dog", "a dog on the beach"]
INVERSION = {
    "method": "TextualInversion",
    "textualInversion": {"vectors": 2},
    "learningRate": 0.1,
    "globalBatchSize": len(PROMPTS),
}
LORA = {"method": "LoRA", "lora": {"rank": 4, "alpha": 10}}


U = torch.tensor([0.0, 0.5, 0.999])


def ddpm_loss(pipeline: Any, clean: Tensor, noise: Tensor, predict: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """The loss of the example scripts for Stable Diffusion 1, 2 and XL."""
    scheduler, timesteps = DDPMScheduler.from_config(pipeline.scheduler.config), torch.tensor([0, 500, 999])
    noisy: Any = scheduler.add_noise(clean, noise, timesteps)  # type: ignore[arg-type]
    return (predict(noisy, timesteps) - noise).square().mean(dim=(1, 2, 3))


def sd_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    text, _ = pipeline.encode_prompt(PROMPTS, "cpu", 1, False)
    return ddpm_loss(pipeline, clean, noise, lambda noisy, t: pipeline.unet(noisy, t, text).sample)


def xl_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_text_to_image_sdxl.py, without crops."""
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)
    time_ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]] * len(PROMPTS))
    conditions = {"text_embeds": pooled, "time_ids": time_ids}

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        return pipeline.unet(noisy, timesteps, text, added_cond_kwargs=conditions).sample

    return ddpm_loss(pipeline, clean, noise, predict)


def noise_levels(pipeline: Any, position: Tensor) -> tuple[Tensor, Tensor]:
    """Sigmas [N, 1, 1, 1] and timesteps [N] of positions in a flow matching schedule, as in the example scripts."""
    scheduler: Any = FlowMatchEulerDiscreteScheduler.from_config(pipeline.scheduler.config)
    indices = (position * 1000).long()
    return scheduler.sigmas[indices].view(-1, 1, 1, 1), scheduler.timesteps[indices]


def sd3_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_sd3.py, with its defaults: logit-normal density, preconditioned outputs."""
    text, _, pooled, _ = pipeline.encode_prompt(PROMPTS, None, None, do_classifier_free_guidance=False)
    sigmas, timesteps = noise_levels(pipeline, torch.sigmoid(torch.distributions.Normal(0.0, 1.0).icdf(U)))
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(noisy, text, pooled, timesteps).sample
    return (prediction * -sigmas + noisy - clean).square().mean(dim=(1, 2, 3))


def flux_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_flux.py, with its defaults: uniform density, guidance scale 3.5."""
    text, pooled, text_ids = pipeline.encode_prompt(PROMPTS)
    sigmas, timesteps = noise_levels(pipeline, U)
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(
        pipeline._pack_latents(noisy, *noisy.shape),
        encoder_hidden_states=text,
        pooled_projections=pooled,
        timestep=timesteps / 1000,
        img_ids=pipeline._prepare_latent_image_ids(3, 4, 4, "cpu", torch.float32),
        txt_ids=text_ids,
        guidance=torch.full([3], 3.5),
    ).sample
    unpacked = pipeline._unpack_latents(prediction, 32, 32, pipeline.vae_scale_factor)
    return (unpacked - (noise - clean)).square().mean(dim=(1, 2, 3))


def z_image_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth_lora_z_image.py, with its defaults: uniform density."""
    text, _ = pipeline.encode_prompt(list(PROMPTS), do_classifier_free_guidance=False)
    sigmas, timesteps = noise_levels(pipeline, U)
    noisy = (1 - sigmas) * clean + sigmas * noise
    prediction = pipeline.transformer(list(noisy.unsqueeze(2)), (1000 - timesteps) / 1000, text).sample
    return (-torch.stack(prediction).squeeze(2) - (noise - clean)).square().mean(dim=(1, 2, 3))


def if_loss(pipeline: Any, clean: Tensor, noise: Tensor) -> Tensor:
    """As in diffusers' train_dreambooth.py with a U-Net that predicts the variance."""
    text, _ = pipeline.encode_prompt(PROMPTS, do_classifier_free_guidance=False)

    def predict(noisy: Tensor, timesteps: Tensor) -> Tensor:
        prediction, _ = pipeline.unet(noisy, timesteps, text).sample.chunk(2, dim=1)
        return prediction

    return ddpm_loss(pipeline, clean, noise, predict)


# By fixture: the plain pipeline, and the loss of the example script for each of PROMPTS, at the positions U.
FAMILIES: dict[str, tuple[Any, Callable[[Any, Tensor, Tensor], Tensor]]] = {
    "tiny_model": (StableDiffusionPipeline, sd_loss),
    "tiny_xl_model": (StableDiffusionXLPipeline, xl_loss),
    "tiny_sd3_model": (StableDiffusion3Pipeline, sd3_loss),
    "tiny_sd3_model_without_t5": (StableDiffusion3Pipeline, sd3_loss),
    "tiny_flux_model": (FluxPipeline, flux_loss),
    "tiny_z_image_model": (ZImagePipeline, z_image_loss),
    "tiny_if_model": (IFPipeline, if_loss),
}


@pytest.fixture(params=FAMILIES)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def model(request: pytest.FixtureRequest, name: str) -> Path:
    return request.getfixturevalue(name)


@pytest.fixture(params=["tiny_model", "tiny_xl_model"])
def token_model(request: pytest.FixtureRequest) -> Path:
    """A model whose text encoders can get new tokens."""
    return request.getfixturevalue(request.param)


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
    loss = stage.loss(stage.modules, examples, noise, U)
    pipeline_class, example_loss = FAMILIES[name]
    pipeline = plain(pipeline_class, model)
    with torch.no_grad():
        pixels = torch.stack([torch.tensor(np.asarray(image)) for image in images]).permute(0, 3, 1, 2) / 127.5 - 1
        expected = example_loss(pipeline, clean_examples(pipeline, pixels, noise), noise["noise"])
    torch.testing.assert_close(loss.detach(), expected)


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
        losses.append(stage.loss(stage.modules, examples, random_noise(stage.noise_shapes(examples)), u))
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
    assert size.assembled == 4 * sum(sizes.values())
    assert size.trainable == sum(sizes[part] for part in trained_modules(family, text_encoders=True))


def plain(pipeline_class: Any, folder: Path) -> Any:
    """A pipeline of plain diffusers, which requires components that a model lacks to be passed as None."""
    index = json.loads((folder / "model_index.json").read_text())
    missing = {name: None for name, kind in index.items() if kind == [None, None]}
    return pipeline_class.from_pretrained(folder, dtype=torch.float32, **missing)


def draw(model: Path | Any, adapter: Path | None = None) -> np.ndarray:
    """An image that a plain diffusers pipeline, or the one in a folder, draws."""
    pipeline = plain(DiffusionPipeline, model) if isinstance(model, Path) else model
    if adapter is not None:
        pipeline.load_lora_weights(adapter)
        if pipeline.scheduler.config.get("variance_type") == "learned_range":  # as the guide of diffusers says
            pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config, variance_type="fixed_small")
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


def run_job(model: Path, images: list[Image.Image], root: Path, training: dict[str, Any]) -> JobFolder:
    """Encode, two steps of training, and save."""
    plan = make_plan({"model": {"id": str(model)}, "training": {"resolution": 32, "steps": 2, **training}})
    folder, checkpoint = JobFolder(root), root / "checkpoint"
    for path in (folder.prepared, checkpoint):
        path.mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder.prepared / f"{number:03d}.png")
    encode(plan, folder, [PROMPTS], [1] * len(PROMPTS), [])
    engine, data = PlainEngine(plan, None), load_data(folder.latents)
    losses = [run_step(engine, plan, data, step, 0, 1).tolist() for step in range(2)]
    assert np.isfinite(losses).all()
    engine.save_weights(checkpoint, 0)
    save_trained_model(plan, checkpoint, folder)
    return folder


def weights_of(model: Path) -> dict[str, Tensor]:
    files = model.glob("*/*.safetensors")
    return {f"{path.parent.name}.{key}": tensor for path in files for key, tensor in load_file(path).items()}


def test_textual_inversion_moves_only_its_rows(token_model: Path, images: list[Image.Image], tmp_path: Path) -> None:
    folder = run_job(token_model, images, tmp_path, INVERSION)
    family, before, after = open_family(token_model), weights_of(token_model), weights_of(folder.trained)
    tables = {key for key in before if key.endswith("token_embedding.weight")}
    assert len(tables) == len(family.text_encoders)
    assert {key for key in before if not torch.equal(before[key], after[key][: len(before[key])])} == set()
    assert {key for key in before if before[key].shape != after[key].shape} == tables
    noun = (
        open_family(token_model).open(token_model, ()).text[0].tokenizer("dog", add_special_tokens=False).input_ids[-1]
    )
    for table in tables:
        start, rows = before[table][noun], after[table][len(before[table]) :]
        assert len(rows) == 2
        assert (rows - start).abs().max() > 0.01
        torch.testing.assert_close(rows.float().norm(dim=1), start.float().norm().expand(2), rtol=1e-3, atol=0)


def test_published_tokens_draw_the_same_in_a_plain_pipeline(
    token_model: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    folder = run_job(token_model, images, tmp_path, INVERSION)
    pipeline = DiffusionPipeline.from_pretrained(token_model, dtype=torch.float32)
    embeddings = load_file(folder.trained / "learned_embeds.safetensors")
    if set(embeddings) == {"sks"}:
        pipeline.load_textual_inversion(folder.trained)
    else:  # as the example scripts of diffusers say
        for key, suffix in (("clip_l", ""), ("clip_g", "_2")):
            encoder, tokenizer = (getattr(pipeline, f"{part}{suffix}") for part in ("text_encoder", "tokenizer"))
            pipeline.load_textual_inversion(embeddings[key], token="sks", text_encoder=encoder, tokenizer=tokenizer)
    drawn = draw(folder.trained)
    np.testing.assert_allclose(draw(pipeline), drawn, rtol=0, atol=1 / 255)
    ours = load_pipeline(token_model, "fp32", "cpu", folder.trained).pipeline
    np.testing.assert_allclose(draw(ours), drawn, rtol=0, atol=1 / 255)
    assert np.abs(draw(token_model) - drawn).max() > 1 / 255


def test_pivotal_tuning_publishes_tokens_and_an_adapter(
    token_model: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    folder = run_job(token_model, images, tmp_path, {**INVERSION, "method": "PivotalTuning", "learningRate": 1e-2})
    drawn = draw(folder.trained)
    loaded = load_pipeline(token_model, "fp32", "cpu", folder.trained).pipeline
    np.testing.assert_allclose(draw(loaded), drawn, rtol=0, atol=1 / 255)
    tokens = tmp_path / "tokens"
    tokens.mkdir()
    (folder.trained / "learned_embeds.safetensors").rename(tokens / "learned_embeds.safetensors")
    for part in (tokens, folder.trained):
        only_one = load_pipeline(token_model, "fp32", "cpu", part).pipeline
        assert np.abs(draw(only_one) - drawn).max() > 1 / 255, part


@pytest.mark.parametrize("method", METHODS)
def test_a_job_is_encoded_trained_and_saved(
    model: Path, images: list[Image.Image], tmp_path: Path, method: str
) -> None:
    training = {"learningRate": 1e-2, "method": method, "textEncoder": {"train": not METHODS[method].tokens}}
    family, plan = open_family(model), make_plan({"model": {"id": str(model)}, "training": {"method": method}})
    assert [slot.folder for slot in family.open(model, ()).text] == list(family.extensible_tokenizers)
    issues = [str(issue) for issue in capability_issues(plan, family)]
    if METHODS[method].tokens and not family.extensible_tokenizers:
        assert issues == [
            f"spec.training.method: '{method}': adds tokens, which is not supported for {family.name}, only for Stable "
            "Diffusion 1, 2 and XL; set method: LoRA"
        ]
        return
    assert issues == []
    folder = run_job(model, images, tmp_path, training)
    assert np.abs(draw(folder.trained) - draw(model)).max() > 1 / 255
    if METHODS[method].adapter and not METHODS[method].tokens:
        np.testing.assert_allclose(draw(model, folder.trained / ADAPTER_FILE), draw(folder.trained), atol=1 / 255)
