"""Every family with every method: encoded, trained and saved; new tokens in the families that can get them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline, FluxPipeline
from examplelosses import FAMILIES
from familycases import INVERSION, draw, load_tokens, run_job, weights_of
from PIL import Image
from test_plan import make_plan

from dreambooth_api.methods import METHODS
from dreambooth_trainer.families.capabilities import capability_issues
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE
from dreambooth_trainer.sampling.pipeline import load_pipeline

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]


@pytest.fixture(params=FAMILIES)
def model(request: pytest.FixtureRequest) -> Path:
    return request.getfixturevalue(request.param)


@pytest.fixture(params=["tiny_model", "tiny_xl_model", "tiny_flux_model"])
def token_model(request: pytest.FixtureRequest) -> Path:
    """A model whose text encoders can get new tokens."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def images() -> list[Image.Image]:
    pixels = np.random.default_rng(0).integers(0, 255, (3, 32, 32, 3), dtype=np.uint8)
    return [Image.fromarray(image) for image in pixels]


def test_textual_inversion_moves_only_its_rows(token_model: Path, images: list[Image.Image], tmp_path: Path) -> None:
    folder = run_job(token_model, images, tmp_path, INVERSION)
    before, after = weights_of(token_model), weights_of(folder.trained)
    tokenizers = {slot.module: slot.tokenizer for slot in open_family(token_model).open(token_model, ()).text}
    names = {key.partition(".")[0]: key for key in before if key.endswith(("token_embedding.weight", "shared.weight"))}
    tables = {module: names[module] for module in tokenizers}
    assert {key for key in before if not torch.equal(before[key], after[key])} - set(tables.values()) == set()
    for module, table in tables.items():
        first, noun = len(tokenizers[module]), tokenizers[module]("dog", add_special_tokens=False).input_ids[-1]
        assert torch.equal(before[table][:first], after[table][:first])
        assert len(after[table]) == max(first + 2, len(before[table])), "the table of T5 has rows to spare"
        start, rows = before[table][noun], after[table][first : first + 2]
        assert (rows - start).abs().max() > 0.01
        torch.testing.assert_close(rows.float().norm(dim=1), start.float().norm().expand(2), rtol=1e-3, atol=0)


def test_published_tokens_draw_the_same_in_a_plain_pipeline(
    token_model: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    folder = run_job(token_model, images, tmp_path, INVERSION)
    pipeline = DiffusionPipeline.from_pretrained(token_model, dtype=torch.float32)
    load_tokens(pipeline, folder.trained)
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


def test_new_tokens_of_a_t5_in_bf16_are_trained_with_checkpointing(
    tiny_flux_model: Path, images: list[Image.Image], tmp_path: Path
) -> None:
    large: Any = {"default": torch.float32, "text_encoder_2": torch.bfloat16, "transformer": torch.bfloat16}
    FluxPipeline.from_pretrained(tiny_flux_model, dtype=large).save_pretrained(tmp_path / "base")
    training = {**INVERSION, "method": "PivotalTuning", "precision": "bf16", "gradientCheckpointing": True}
    folder = run_job(tmp_path / "base", images, tmp_path, training)
    before, after = weights_of(tmp_path / "base"), weights_of(folder.trained)
    encoder = {key for key in before if key.startswith("text_encoder_2.")}
    assert {before[key].dtype for key in encoder} == {after[key].dtype for key in encoder} == {torch.bfloat16}
    assert {key for key in encoder if not torch.equal(before[key], after[key])} == {"text_encoder_2.shared.weight"}
    assert np.isfinite(draw(folder.trained)).all()


@pytest.mark.parametrize("method", [name for name, traits in METHODS.items() if traits.trains])
def test_a_job_is_encoded_trained_and_saved(
    model: Path, images: list[Image.Image], tmp_path: Path, method: str
) -> None:
    training = {"learningRate": 1e-2, "method": method, "textEncoder": {"train": not METHODS[method].tokens}}
    family, plan = open_family(model), make_plan({"model": {"id": str(model)}, "training": {"method": method}})
    slots = {slot.module: slot.folder for slot in family.open(model, ()).text}
    assert slots == dict(family.extensible_text_encoders)
    issues = [str(issue) for issue in capability_issues(plan, family)]
    if METHODS[method].tokens and not family.extensible_text_encoders:
        assert issues == [
            f"spec.training.method: '{method}': adds tokens, which is not supported for {family.name}, only for Stable "
            "Diffusion 1, 2, XL and FLUX.1; set method: LoRA"
        ]
        return
    assert issues == []
    folder = run_job(model, images, tmp_path, training)
    assert np.abs(draw(folder.trained) - draw(model)).max() > 1 / 255
    if METHODS[method].adapter and not METHODS[method].tokens:
        np.testing.assert_allclose(draw(model, folder.trained / ADAPTER_FILE), draw(folder.trained), atol=1 / 255)
