"""Image generation with one pipeline: noise schedulers, and text embeddings that are computed once."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import DPMSolverMultistepScheduler

from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.sampling.pipeline import (
    ImageRequest,
    LoadedPipeline,
    SamplingConfig,
    load_pipeline,
    noise_seed,
    sample_batch,
)
from dreambooth_trainer.sprites import WEIGHTS

pytestmark = pytest.mark.usefixtures("one_thread")


def config_of(**sampler: Any) -> SamplingConfig:
    settings = SamplerSettings(**{"steps": 2, "guidance_scale": 2.0, **sampler})
    return SamplingConfig(settings, resolution=32, precision="fp32", batch_size=4)


def requests_of(*prompts: str) -> list[ImageRequest]:
    return [ImageRequest(f"{i:06d}", prompt, noise_seed("test", i)) for i, prompt in enumerate(prompts)]


def pixels(loaded: LoadedPipeline, config: SamplingConfig, requests: list[ImageRequest]) -> np.ndarray:
    return np.stack([np.asarray(image, int) for image in sample_batch(loaded, config, requests)])


def test_the_scheduler_of_one_batch_does_not_affect_the_next(tiny_model: Path) -> None:
    loaded, requests = load_pipeline(tiny_model, "fp32", "cpu"), requests_of("a dog", "a dog")
    default = pixels(loaded, config_of(), requests)
    fast = pixels(loaded, config_of(scheduler="DPMSolverMultistep"), requests)
    assert isinstance(loaded.pipeline.scheduler, DPMSolverMultistepScheduler)
    assert np.abs(fast - default).max() > 10
    assert np.array_equal(pixels(loaded, config_of(), requests), default)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_the_fast_scheduler_keeps_the_models_noise_schedule(make_model: Any, prediction_type: str) -> None:
    loaded = load_pipeline(make_model(prediction_type), "fp32", "cpu")
    loaded.use_scheduler("DPMSolverMultistep")
    config = loaded.pipeline.scheduler.config
    assert (config.prediction_type, config.algorithm_type) == (prediction_type, "dpmsolver++")
    assert config.use_karras_sigmas
    assert config.beta_end == loaded.default_scheduler.config.beta_end


def test_few_steps_of_the_fast_scheduler_are_close_to_many_steps_of_the_default() -> None:
    loaded, requests = load_pipeline(WEIGHTS, "fp32", "cpu"), requests_of(*["a dog"] * 4)
    exact = pixels(loaded, config_of(steps=60), requests)
    fast, default = (
        np.abs(pixels(loaded, config_of(steps=10, scheduler=name), requests) - exact).mean()
        for name in ("DPMSolverMultistep", "Default")
    )
    assert fast < default


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_prompts_are_encoded_once_and_as_the_pipeline_encodes_them(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch, guidance: float
) -> None:
    loaded, encoded = load_pipeline(tiny_model, "fp32", "cpu"), list[str]()
    embed = loaded.family.embed_prompts

    def record(pipeline: Any, prompts: Any) -> Any:
        encoded.extend(prompts)
        return embed(pipeline, prompts)

    monkeypatch.setattr(loaded.family, "embed_prompts", record)
    config, requests = config_of(guidance_scale=guidance), requests_of("a dog", "a cat", "a dog")
    images = pixels(loaded, config, requests)
    assert np.array_equal(pixels(loaded, config, requests), images)
    assert sorted(encoded) == ["a cat", "a dog"]
    monkeypatch.setattr(loaded, "embed", lambda prompts: {"prompt": list(prompts)})
    assert np.abs(pixels(loaded, config, requests) - images).max() <= 1


def test_embeddings_of_different_lengths_are_a_list() -> None:
    class Embedder:
        def embed_prompts(self, pipeline: Any, prompts: Sequence[str]) -> dict[str, list[torch.Tensor]]:
            return {"prompt_embeds": [torch.full((len(prompt), 2), float(len(prompt))) for prompt in prompts]}

    loaded = LoadedPipeline(None, cast("Any", Embedder()), None)
    prompts = ["a dog", "a", "a dog", "a cat!"]
    rows = loaded.embed(prompts)["prompt_embeds"]
    assert [tuple(row.shape) for row in rows] == [(len(prompt), 2) for prompt in prompts]
    assert [row[0, 0].item() for row in rows] == [len(prompt) for prompt in prompts]
