"""Whole jobs with models from the Hub, by the command line: every family with each of its methods.

From class images to a published model that plain diffusers loads, and that draws the image that the trainer draws. One
case is in the gate, the others are long.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from diffusers import DiffusionPipeline
from familycases import draw, load_tokens, plain
from hubserver import run_hub
from test_cascade import SECOND
from test_cascade import draw as draw_cascade

from dreambooth_api.methods import METHODS
from dreambooth_trainer.families.base import GuidanceScale
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.models.files import ADAPTER_FILE, embeddings_file
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch

pytestmark = pytest.mark.trainer

GATE = ("tiny_sd3_model", "LoRA")
CASCADE = "cascade"
WITH_TOKENS = ("tiny_model", "tiny_xl_model", "tiny_flux_model")
FAMILIES = (*WITH_TOKENS, "tiny_sd3_model", "tiny_z_image_model", "tiny_if_model", CASCADE)
CASES = [
    pytest.param(name, method, marks=[] if (name, method) == GATE else pytest.mark.long, id=f"{name}-{method}")
    for name in FAMILIES
    for method, traits in METHODS.items()
    if traits.trains and (name in WITH_TOKENS or not traits.tokens)
]
PROMPT = "a sks dog"


def job_of(name: str, method: str) -> dict[str, Any]:
    """A small job, which publishes all formats of the method that all families have."""
    traits = METHODS[method]
    second = {"superResolution": {"id": "team/second"}} if name == CASCADE else {}
    training: dict[str, Any] = {"method": method, "steps": 2, "learningRate": 0.01}
    training |= {} if name == CASCADE else {"resolution": 16 if name == "tiny_if_model" else 32}
    training |= {"lora": {"rank": 2}} if traits.adapter else {}
    training |= {"textualInversion": {"vectors": 2}, "textEncoder": {"learningRate": 0.1}} if traits.tokens else {}
    formats = [form for form in traits.formats if form != "safetensors"]
    preservation = {"numClassImages": 2, "sampler": {"steps": 1}}
    return {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothJob",
        "metadata": {"name": "my-dog"},
        "spec": {
            "model": {"id": "team/model", **second},
            "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
            **({"priorPreservation": preservation} if traits.changes_weights else {}),
            "training": training,
            "evaluation": {
                "enabled": (name, method) == GATE,  # scores need four times as many images
                "prompts": ["a {} on the beach"],
                "imagesPerPrompt": 1,
                "encoders": {"dino": "builtin:sprites", "clip": "builtin:sprites"},
            },
            "output": {"formats": formats},
        },
    }


def models_of(request: pytest.FixtureRequest, name: str) -> list[Path]:
    names = ("tiny_if_model", "tiny_super_resolution_model") if name == CASCADE else (name,)
    return [request.getfixturevalue(one) for one in names]


def drawn_by_the_trainer(bases: list[Path], adapter: Path | None = None) -> np.ndarray:
    """An image of the trainer's own sampling, in [0, 1], with the noise of `draw`."""
    loaded = load_pipeline(bases[0], "fp32", "cpu", adapter, *bases[1:])
    config = SamplingConfig(SamplerSettings(steps=4, guidance_scale=3), 64 if len(bases) > 1 else 32, "fp32", 1)
    (image,) = sample_batch(loaded, config, [ImageRequest("0", PROMPT, 0)])
    return np.asarray(image, dtype=float)[None] / 255


def drawn_by_diffusers(model: Path, method: str, base: Path | None = None) -> np.ndarray:
    """An image of plain diffusers, from a published pipeline, or from the base model with an adapter and new tokens."""
    folder = model if base is None else base
    pipeline, family = plain(DiffusionPipeline, folder), open_family(folder)
    if base is not None and METHODS[method].tokens:
        load_tokens(pipeline, model)
    adapter = model / ADAPTER_FILE if base is not None and METHODS[method].adapter else None
    scale = family.guidance_argument(3) if isinstance(family, GuidanceScale) else 3
    return draw(pipeline, adapter, guidance_scale=scale)


@pytest.mark.parametrize(("name", "method"), CASES)
def test_a_job_with_a_model_from_the_hub_publishes_what_plain_diffusers_loads(
    request: pytest.FixtureRequest, name: str, method: str, tmp_path: Path
) -> None:
    bases, traits = models_of(request, name), METHODS[method]
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(job_of(name, method)))
    with run_hub() as (hub, url):
        for repository, base in zip(("team/model", "team/second"), bases, strict=False):
            hub.serve(base, repository)
        command = [sys.executable, "-m", "dreambooth_trainer", "run", "job.yaml", "--out", "out", "--store", "store"]
        cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": url}
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **cache}, capture_output=True, text=True, timeout=500, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    model = tmp_path / "out" / "model"
    if (name, method) == GATE:
        assert set(json.loads((model / "scores.json").read_text())) == {"before", "after"}
    assert len(list((tmp_path / "store").rglob("*.png"))) >= 2 * traits.changes_weights
    assert (model / ADAPTER_FILE).exists() == traits.adapter
    assert (model / embeddings_file(0)).exists() == traits.tokens
    if name == CASCADE:
        published = draw_cascade(model, model / SECOND)
        assert np.abs(draw_cascade(*bases) - published).max() > 0
        if traits.adapter:
            np.testing.assert_allclose(draw_cascade(*bases, adapter=model), published, rtol=0, atol=2 / 255)
        return
    published = drawn_by_diffusers(model, method)
    assert np.isfinite(published).all()
    assert np.abs(drawn_by_diffusers(bases[0], method) - published).max() > 0
    np.testing.assert_allclose(drawn_by_the_trainer([model]), published, rtol=0, atol=2 / 255)
    if traits.adapter or traits.tokens:
        np.testing.assert_allclose(drawn_by_diffusers(model, method, bases[0]), published, rtol=0, atol=1 / 255)
        np.testing.assert_allclose(drawn_by_the_trainer(bases, model), published, rtol=0, atol=2 / 255)
