"""The memory of a plan is counted from the configuration of its model. No weights are read."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler, FlowMatchEulerDiscreteScheduler
from test_plan import job_of
from test_plan import make_plan as plan_of
from transformers import CLIPTokenizer

from dreambooth_api.errors import UserError
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.fit import size_of
from dreambooth_trainer.planning.make_plan import JobFacts, draft_plan, make_plan
from dreambooth_trainer.planning.memory import GIB, ModelSize, memory_need, plain_bytes
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.training.memory_count import LiveBytes, count_size

pytestmark = pytest.mark.trainer

VAE = {
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "block_out_channels": [128, 256, 512, 512],
    "layers_per_block": 2,
    "latent_channels": 4,
}
UNET = {"block_out_channels": [320, 640, 1280, 1280], "cross_attention_dim": 768, "attention_head_dim": 8}
TEXT = {
    "vocab_size": 49408,
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "bos_token_id": 49406,
    "eos_token_id": 49407,
}
# Differences of Stable Diffusion 2.1 from 1.5.
UNET_2 = {**UNET, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20], "use_linear_projection": True}
TEXT_2 = {**TEXT, "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 23, "num_attention_heads": 16}


def write_model(folder: Path, unet: dict[str, Any], text: dict[str, Any]) -> Path:
    """The configuration files and a tokenizer of a diffusers folder."""
    DDPMScheduler().save_pretrained(folder / "scheduler")
    CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer", model_max_length=77).save_pretrained(folder / "tokenizer")
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))
    for part, config in (("unet", unet), ("vae", VAE), ("text_encoder", text)):
        (folder / part).mkdir()
        (folder / part / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="module")
def sd15(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The configuration of Stable Diffusion 1.5."""
    return write_model(tmp_path_factory.mktemp("sd15"), UNET, TEXT)


def count(folder: Path, images: int, precision: str = "bf16", **training: Any) -> ModelSize:
    """The size for DeepSpeed, which trains in pure bf16. `test_meta_autocast.py` counts a single process."""
    training = {"resolution": 512, "globalBatchSize": 2, **training}
    spec = {"model": {"id": str(folder)}, "cluster": {"workers": 2}, "training": training}
    return count_size(plan_of(spec, precision=precision), folder, images, encoding_batch=1)


def test_the_parameters_of_stable_diffusion_are_counted(sd15: Path) -> None:
    size = count(sd15, 1)
    assert (size.trainable, size.frozen) == (859_520_964, 0)
    assert size.assembled == 4 * (859_520_964 + 123_060_480 + 83_653_863)
    lora = count(sd15, 1, method="LoRA", lora={"rank": 4})
    assert lora.frozen == 859_520_964
    assert lora.trainable == 3_654_144


def test_what_is_kept_of_the_base_model_is_counted(sd15: Path) -> None:
    def size(mode: str, workers: int = 2, **training: Any) -> ModelSize:
        settings = {"resolution": 256, "globalBatchSize": 2, **training}
        spec = {
            "model": {"id": str(sd15)},
            "cluster": {"workers": workers},
            "training": settings,
            "priorPreservation": {"mode": mode},
        }
        return count_size(plan_of(spec, precision="bf16"), sd15, 2, encoding_batch=1)

    weights = 859_520_964
    images, prediction, bound = (size(mode) for mode in ("Images", "Prediction", "Bound"))
    assert (images.frozen, prediction.frozen, bound.frozen) == (0, weights, weights)
    assert prediction.loaded == bound.loaded == 2 * images.loaded
    assert prediction.assembled == bound.assembled == images.assembled
    assert bound.activations == pytest.approx(images.activations + 2 * weights, rel=0.01)
    # A single process keeps trained weights, and their exact copy, in fp32.
    assert size("Bound", workers=1).frozen == 2 * weights
    assert weights < size("Prediction", workers=1).frozen < 1.01 * weights, "norms are in fp32"
    lora = {"method": "LoRA", "lora": {"rank": 4}}
    assert size("Prediction", **lora).frozen == size("Bound", **lora).frozen == weights


@pytest.mark.parametrize(
    ("training", "gib"),
    # GiB of one image in bf16, counted independently (shared/STACK-FACTS.md): 0.92 and 0.14.
    [({}, 0.92), ({"gradientCheckpointing": True}, 0.14)],
    ids=["all kept", "checkpointing"],
)
def test_activations_of_stable_diffusion_at_512_pixels(sd15: Path, training: dict[str, Any], gib: float) -> None:
    assert count(sd15, 1, **training).activations / GIB == pytest.approx(gib, rel=0.06)


def test_activations_of_stable_diffusion_2_at_768_pixels(tmp_path: Path) -> None:
    folder = write_model(tmp_path, UNET_2, TEXT_2)
    assert count(folder, 1, resolution=768).activations / GIB == pytest.approx(2.05, rel=0.06)


def test_activations_scale_with_images_precision_and_trained_parts(sd15: Path) -> None:
    one = count(sd15, 1, resolution=256)
    assert count(sd15, 2, resolution=256).activations == pytest.approx(2 * one.activations, rel=0.01)
    assert count(sd15, 1, "fp32", resolution=256).activations == pytest.approx(2 * one.activations, rel=0.02)
    both = count(sd15, 1, resolution=256, textEncoder={"train": True})
    assert both.trainable == 859_520_964 + 123_060_480
    assert both.activations > one.activations


@pytest.mark.parametrize("training", [{}, {"method": "LoRA"}, {"gradientCheckpointing": True}], ids=str)
def test_the_count_is_what_a_real_step_allocates(tiny_model: Path, training: dict[str, Any]) -> None:
    from dreambooth_trainer.training.batches import Batch
    from dreambooth_trainer.training.model import build_module

    spec = {"model": {"id": str(tiny_model)}, "training": {"resolution": 64, **training}}
    plan = plan_of(spec)
    size = count_size(plan, tiny_model, 2, encoding_batch=1)
    module = build_module(plan)
    assert size.trainable == sum(p.numel() for p in module.parameters() if p.requires_grad)
    latents = torch.randn(2, 4, 16, 16)
    examples = {"latent_mean": latents, "latent_std": latents, "text_embeds": torch.randn(2, 77, 32)}
    batch = Batch(examples, {"latent": latents, "noise": latents}, torch.tensor([0.1, 0.2]), 1)
    with LiveBytes(module.parameters()) as memory:
        losses = module(batch)
        activations = memory.live
        losses[0].backward()
    gradients = sum(p.grad.nbytes for p in module.parameters() if p.grad is not None)
    assert size.activations == pytest.approx(activations, rel=0.05)
    assert size.backward == pytest.approx(max(0, memory.peak - gradients), rel=0.1)


def test_validation_needs_the_other_modules_and_the_memory_of_one_image(sd15: Path) -> None:
    validated = {"validation": {"prompts": ["a {}", "a red {}"], "everySteps": 100}}
    without, with_images = (count(sd15, 2, **training) for training in ({}, validated))
    assert (without.validators, without.validation) == (0, 0)
    assert without == replace(with_images, validators=0, validation=0)
    # The text encoder in bf16, and the autoencoder in fp32, as its configuration requires.
    assert with_images.validators == 2 * 123_060_480 + 4 * 83_653_863
    assert 0 < with_images.validation - with_images.validators <= with_images.sampling
    needs = {
        gpu: [memory_need(size, plain_bytes(), gpu=gpu, frozen_bytes=2).total for size in (without, with_images)]
        for gpu in (True, False)
    }
    assert needs[False][1] - needs[False][0] == with_images.validation
    assert 0 <= needs[True][1] - needs[True][0] < with_images.validation, "activations are freed before"


def test_a_plan_is_sized_for_the_micro_batch_of_one_process() -> None:
    sizes: list[int] = []

    def measure(plan: Plan, images: int) -> ModelSize:
        sizes.append(images)
        return ModelSize(0, 0, 0, 0, 0, 0, 0, 0, 0, 0)

    training = {"globalBatchSize": 16, "gradientAccumulationSteps": 2}
    for mode in ("Images", "Prediction", "Bound", "None"):
        spec = {"training": training, "cluster": {"workers": 2}, "priorPreservation": {"mode": mode}}
        size_of(plan_of(spec), measure)
    assert sizes == [8, 8, 4, 4]


def test_a_broken_configuration_is_reported_with_its_folder(tmp_path: Path) -> None:
    folder = write_model(tmp_path, {**UNET, "down_block_types": ["NoSuchBlock"]}, TEXT)
    with pytest.raises(UserError) as caught:
        count(folder, 1)
    assert str(caught.value).startswith(f"spec.model.id: '{folder}': has a module whose configuration is not valid: ")


@pytest.mark.long
def test_full_fine_tuning_of_flux_is_rejected_with_the_memory_that_it_and_lora_need(tmp_path: Path) -> None:
    flux = {"guidance_embeds": True}
    t5 = {"vocab_size": 32128, "d_model": 4096, "d_kv": 64, "d_ff": 10240, "num_layers": 24, "num_heads": 64}
    write_model(tmp_path, UNET, TEXT)
    (tmp_path / "unet").rename(tmp_path / "transformer")
    FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True).save_pretrained(tmp_path / "scheduler")
    shutil.copytree(tmp_path / "tokenizer", tmp_path / "tokenizer_2")
    (tmp_path / "text_encoder_2").mkdir()
    vae = {**VAE, "latent_channels": 16, "use_quant_conv": False, "use_post_quant_conv": False}
    for part, config in (
        ("transformer", flux),
        ("text_encoder_2", {**t5, "feed_forward_proj": "gated-gelu"}),
        ("vae", vae),
    ):
        (tmp_path / part / "config.json").write_text(json.dumps(config))
    index = {name: ["transformers", "T5EncoderModel"] for name in ("text_encoder", "text_encoder_2")}
    (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline", **index}))
    job = job_of({"model": {"id": str(tmp_path)}})
    hardware = Hardware(1, "NVIDIA H100", 0.92 * 80 * GIB, bf16=True)
    facts = JobFacts(BaseModelRef(id=str(tmp_path)), tmp_path, ("sks",), (4,), hardware)
    draft = draft_plan(job, facts)
    with pytest.raises(UserError) as caught:
        make_plan(draft, facts, lambda plan, images: count_size(plan, tmp_path, images, encoding_batch=4))
    message = str(caught.value)
    assert "Full in bf16 at 1024 px needs 252.0 GiB" in message
    assert "set training: {method: LoRA, gradientCheckpointing: true} (needs 28.3 GiB)" in message
