"""A whole job with a model from the Hub, by the command line: from class images to a published model."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from diffusers import DiffusionPipeline
from hubserver import run_hub

from dreambooth_trainer.models.files import ADAPTER_FILE

pytestmark = pytest.mark.trainer

LONG = ("tiny_flux_model", "tiny_z_image_model")
FAMILIES = ["tiny_sd3_model", *(pytest.param(name, marks=pytest.mark.long) for name in LONG)]
PROMPT = "a sks dog"
JOB = {
    "apiVersion": "dreambooth.dev/v1alpha1",
    "kind": "DreamBoothJob",
    "metadata": {"name": "my-dog"},
    "spec": {
        "model": {"id": "team/model"},
        "subject": {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
        "priorPreservation": {"numClassImages": 2, "sampler": {"steps": 1}},
        "training": {"method": "LoRA", "steps": 2, "resolution": 32, "learningRate": 0.01, "lora": {"rank": 2}},
        "evaluation": {
            "prompts": ["a {} on the beach"],
            "imagesPerPrompt": 1,
            "encoders": {"dino": "builtin:sprites", "clip": "builtin:sprites"},
        },
        "output": {"formats": ["diffusers", "lora"]},
    },
}


@pytest.mark.parametrize("name", FAMILIES)
def test_a_job_with_a_model_from_the_hub_publishes_what_plain_diffusers_loads(
    request: pytest.FixtureRequest, name: str, tmp_path: Path
) -> None:
    base = request.getfixturevalue(name)
    (tmp_path / "job.yaml").write_text(yaml.safe_dump(JOB))
    with run_hub() as (hub, url):
        hub.serve(base)
        command = [sys.executable, "-m", "dreambooth_trainer", "run", "job.yaml", "--out", "out", "--store", "store"]
        cache = {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "", "HF_ENDPOINT": url}
        done = subprocess.run(
            command, cwd=tmp_path, env={**os.environ, **cache}, capture_output=True, text=True, timeout=500, check=False
        )
    assert done.returncode == 0, done.stdout + done.stderr
    model = tmp_path / "out" / "model"
    assert set(json.loads((model / "scores.json").read_text())) == {"before", "after"}
    assert len(list((tmp_path / "store").rglob("*.png"))) >= 2

    def draw(folder: Path, adapter: Path | None = None) -> np.ndarray:
        pipeline = DiffusionPipeline.from_pretrained(folder, dtype=torch.float32)
        pipeline.set_progress_bar_config(disable=True)
        if adapter is not None:
            pipeline.load_lora_weights(adapter)
        noise = torch.Generator().manual_seed(0)
        size = {"height": 32, "width": 32}
        return pipeline(PROMPT, num_inference_steps=2, generator=noise, output_type="np", **size).images

    published = draw(model)
    assert np.isfinite(published).all()
    assert np.abs(draw(base) - published).max() > 0
    np.testing.assert_allclose(draw(base, model / ADAPTER_FILE), published, rtol=0, atol=1 / 255)
