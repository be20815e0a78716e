"""Sampling settings of models that their configuration identifies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_model_facts import FLOW, H100, write_model, write_transformer
from test_plan import job_of

from dreambooth_api.job import BaseModelRef
from dreambooth_trainer.planning.describe import class_images_row
from dreambooth_trainer.planning.make_plan import JobFacts, draft_plan
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch

EULER = {"_class_name": "EulerDiscreteScheduler"}
TRAILING = {**EULER, "timestep_spacing": "trailing"}
FLUX: dict[str, Any] = {"_class_name": "FluxTransformer2DModel"}
SD3 = {"_class_name": "SD3Transformer2DModel", "sample_size": 128}
LARGE = {**SD3, "qk_norm": "rms_norm", "dual_attention_layers": []}
Z_IMAGE = {"_class_name": "ZImageTransformer2DModel"}

CASES: dict[str, tuple[dict[str, Any] | None, dict[str, Any], tuple[int, float]]] = {
    "SDXL": (None, {**EULER, "timestep_spacing": "leading"}, (50, 7.5)),
    "SDXL Turbo, SD Turbo": (None, {**TRAILING, "prediction_type": "epsilon"}, (4, 1)),
    "zero SNR": (None, {**TRAILING, "rescale_betas_zero_snr": True}, (50, 7.5)),
    "velocity at zero SNR": (None, {**TRAILING, "prediction_type": "v_prediction"}, (50, 7.5)),
    "FLUX.1 dev": ({**FLUX, "guidance_embeds": True}, {**FLOW, "use_dynamic_shifting": True}, (28, 3.5)),
    "FLUX.1 schnell": ({**FLUX, "guidance_embeds": False}, {**FLOW, "use_dynamic_shifting": False}, (4, 1)),
    "not distilled": ({**FLUX, "guidance_embeds": False}, {**FLOW, "use_dynamic_shifting": True}, (28, 3.5)),
    "SD 3 Medium": ({**SD3, "qk_norm": None}, FLOW, (28, 7)),
    "SD 3.5 Medium": ({**LARGE, "dual_attention_layers": [0, 1]}, FLOW, (40, 4.5)),
    "SD 3.5 Large": (LARGE, FLOW, (28, 3.5)),
    "Z-Image Turbo": (Z_IMAGE, {**FLOW, "shift": 3.0}, (9, 1)),
    "Z-Image": (Z_IMAGE, {**FLOW, "shift": 6.0}, (50, 5)),
}


def plan_of(folder: Path, sampler: dict[str, Any]) -> Plan:
    job = job_of({"model": {"id": str(folder)}, "priorPreservation": {"sampler": sampler}})
    return draft_plan(job, JobFacts(BaseModelRef(id=str(folder)), folder, ("sks",), (4,), H100))


@pytest.mark.parametrize("name", CASES)
def test_the_defaults_are_those_of_the_model_card(tmp_path: Path, name: str) -> None:
    transformer, scheduler, (steps, scale) = CASES[name]
    if transformer is None:
        folder = write_model(tmp_path, {"_class_name": "UNet2DConditionModel"}, scheduler=scheduler)
    else:
        folder = write_transformer(tmp_path, transformer, scheduler)
    plan = plan_of(folder, {})
    expected = SamplerSettings(steps=steps, guidance_scale=scale)
    assert (plan.sampler, plan.class_image_sampler) == (expected, expected)
    assert f"{steps} steps, guidance scale {scale:g}" in class_images_row(plan)
    own = plan_of(folder, {"steps": 12, "guidanceScale": 2})
    assert own.class_image_sampler == SamplerSettings(steps=12, guidance_scale=2), "the job's settings"
    assert own.sampler == expected


@pytest.mark.parametrize(("scale", "argument"), [(1.0, 0.0), (3.5, 2.5)])
def test_a_scale_of_one_disables_guidance_in_z_image(tiny_z_image_model: Path, scale: float, argument: float) -> None:
    loaded = load_pipeline(tiny_z_image_model, "fp32", "cpu")
    config = SamplingConfig(SamplerSettings(steps=2, guidance_scale=scale), 32, "fp32", 1)
    (image,) = sample_batch(loaded, config, [ImageRequest("0", "a dog", 1)])
    assert loaded.pipeline.do_classifier_free_guidance is (scale > 1)
    generator = torch.Generator().manual_seed(1)
    size = {"height": 32, "width": 32}
    (expected,) = loaded.pipeline(
        "a dog", num_inference_steps=2, guidance_scale=argument, generator=[generator], **size
    ).images
    assert np.abs(np.asarray(image, float) - np.asarray(expected, float)).max() <= 1
