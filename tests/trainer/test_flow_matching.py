"""Families with flow matching: what the conformance suite does not cover."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from safetensors.torch import load_file
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_trainer.families.capabilities import capability_issues
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.phases.encode import encode
from dreambooth_trainer.phases.train import save_trained_model
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

MODELS = ["tiny_sd3_model", "tiny_schnell_model"]


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture
def bf16_model(model: Path, tmp_path: Path) -> Path:
    """A model as large ones are stored."""
    pipeline = DiffusionPipeline.from_pretrained(model, dtype=torch.bfloat16)
    pipeline.save_pretrained(tmp_path / "bf16", safe_serialization=True)
    return tmp_path / "bf16"


def test_large_modules_are_loaded_in_bf16_if_they_are_stored_in_bf16(model: Path, bf16_model: Path) -> None:
    family = open_family(model)
    names = (family.denoiser, *family.text_encoders, *family.image_encoders)
    fp32 = {name: next(m.parameters()).dtype for name, m in family.open(model, names).modules.items()}
    assert set(fp32.values()) == {torch.float32}
    low = {name: next(m.parameters()).dtype for name, m in family.open(bf16_model, names).modules.items()}
    large = {family.denoiser, *family.text_encoders} - set(family.trainable_text_encoders)
    assert {name for name, dtype in low.items() if dtype == torch.bfloat16} == large


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_adapters_of_a_model_in_bf16_are_trained_in_fp32(bf16_model: Path, tmp_path: Path, precision: str) -> None:
    training = {"resolution": 32, "steps": 1, "learningRate": 1e-2, "method": "LoRA", "precision": precision}
    plan = make_plan({"model": {"id": str(bf16_model)}, "training": training})
    folder, checkpoint = JobFolder(tmp_path), tmp_path / "checkpoint"
    for path in (folder.prepared, checkpoint):
        path.mkdir(parents=True)
    Image.new("RGB", (32, 32)).save(folder.prepared / "000.png")
    encode(plan, folder, [["a sks dog"]], [1], [])
    engine = PlainEngine(plan, None)
    assert {p.dtype for p in engine.module.parameters() if p.requires_grad} == {torch.float32}
    frozen = {p.dtype for p in engine.module.parameters() if not p.requires_grad}
    assert frozen == {torch.bfloat16 if precision == "bf16" else torch.float32}
    assert np.isfinite(run_step(engine, plan, load_data(folder.latents), 0, 0, 1).tolist()).all()
    engine.save_weights(checkpoint, 0)
    save_trained_model(plan, checkpoint, folder)
    adapter = load_file(folder.trained / ADAPTER_FILE)
    assert {tensor.dtype for tensor in adapter.values()} == {torch.float32}
    assert any(tensor.any() for name, tensor in adapter.items() if ".lora_B." in name)


@pytest.mark.parametrize("stored", ["fp32", "bf16"])
def test_images_are_those_of_the_plain_pipeline(model: Path, bf16_model: Path, stored: str) -> None:
    folder = model if stored == "fp32" else bf16_model
    loaded = load_pipeline(folder, "fp32", "cpu")
    config = SamplingConfig(SamplerSettings(steps=3, guidance_scale=3.5), 32, "fp32", 2)
    prompts = ["a sks dog", "a dog"]
    images = sample_batch(loaded, config, [ImageRequest(f"{n}", prompt, n) for n, prompt in enumerate(prompts)])
    pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    settings = {"num_inference_steps": 3, "guidance_scale": 3.5, "height": 32, "width": 32}
    expected = pipeline(prompts, generator=[torch.Generator().manual_seed(n) for n in range(2)], **settings).images
    # T5 runs in bf16 if it is stored in bf16.
    tolerance = 1 if stored == "fp32" else 8
    for image, other in zip(images, expected, strict=True):
        assert np.abs(np.asarray(image, float) - np.asarray(other, float)).max() <= tolerance
    assert np.abs(np.asarray(images[0], float) - np.asarray(images[1], float)).max() > tolerance


def test_a_single_file_is_rejected_where_no_converter_exists(model: Path) -> None:
    spec = {"model": {"id": str(model)}}
    family = open_family(model)
    assert capability_issues(make_plan(spec), family) == []
    (issue,) = capability_issues(make_plan({**spec, "output": {"formats": ["safetensors"]}}), family)
    assert str(issue) == (
        f"spec.output.formats: 'safetensors': is not available for {family.name}: there is no converter to a single "
        "file; set diffusers, or lora with LoRA"
    )


def test_min_snr_weights_are_rejected_by_the_loss(model: Path) -> None:
    family = open_family(model)
    stage = family.open(model, ())
    with pytest.raises(UserError, match="does not apply to models with flow matching"):
        stage.denoise({}, {}, {}, torch.zeros(1), 5.0)
