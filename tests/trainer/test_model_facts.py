"""Defaults that come from the configuration files of a base model. The models have no weights."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.make_plan import JobFacts, draft_plan
from dreambooth_trainer.planning.memory import GIB
from dreambooth_trainer.planning.model_facts import check_model, check_scheduler, native_resolution
from dreambooth_trainer.sprites import WEIGHTS

FOUR_BLOCKS = {"block_out_channels": [128, 256, 512, 512]}
H100 = Hardware(1, "NVIDIA H100", 0.92 * 80 * GIB, bf16=True)


def write_model(folder: Path, unet: Any, vae: Any = FOUR_BLOCKS, scheduler: Any = None) -> Path:
    """The configuration files of a diffusers folder."""
    for part, file, config in (
        ("unet", "config.json", unet),
        ("vae", "config.json", vae),
        ("scheduler", "scheduler_config.json", scheduler or {}),
    ):
        (folder / part).mkdir()
        (folder / part / file).write_text(config if isinstance(config, str) else json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("sample_size", "resolution"),
    [(64, 512), (96, 768), (128, 1024), ([96, 64], 512), (None, None)],
    ids=["SD 1.5", "SD 2.1", "1024 px", "not square", "not set"],
)
def test_the_native_resolution_is_read_from_the_configuration(
    tmp_path: Path, sample_size: Any, resolution: int | None
) -> None:
    assert native_resolution(write_model(tmp_path, {"sample_size": sample_size})) == resolution


def test_the_embedded_model_has_its_native_resolution() -> None:
    assert native_resolution(WEIGHTS) == 32


@pytest.mark.parametrize(("training", "resolution"), [({}, 768), ({"resolution": 256}, 256)], ids=["default", "set"])
def test_a_job_trains_at_the_resolution_of_its_model(tmp_path: Path, training: dict[str, int], resolution: int) -> None:
    unet = {"sample_size": 96, "block_out_channels": [320, 640, 1280, 1280]}
    folder = write_model(tmp_path, unet, scheduler={"prediction_type": "v_prediction"})
    job = job_of({"model": {"id": str(folder)}, "training": training})
    facts = JobFacts(BaseModelRef(id=str(folder)), folder, ("sks",), (4,), H100)
    plan = draft_plan(job, facts)
    assert plan.resolution == resolution
    assert plan.sampler.steps == 50


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction", None])
def test_supported_schedulers_are_accepted(tmp_path: Path, prediction_type: str | None) -> None:
    scheduler = {} if prediction_type is None else {"prediction_type": prediction_type}
    check_scheduler(write_model(tmp_path, {}, scheduler=scheduler))


@pytest.mark.parametrize(
    ("scheduler", "sentence"),
    [
        ({"prediction_type": "sample"}, "prediction_type 'sample' is not supported; use a model with one of: epsilon"),
        ("{", "scheduler/scheduler_config.json cannot be read; set the folder of a complete diffusers model"),
        ("[]", "scheduler/scheduler_config.json cannot be read; set the folder of a complete diffusers model"),
    ],
)
def test_an_unsupported_scheduler_is_rejected_before_training(tmp_path: Path, scheduler: Any, sentence: str) -> None:
    folder = write_model(tmp_path, {}, scheduler=scheduler)
    with pytest.raises(UserError) as caught:
        check_scheduler(folder)
    assert sentence in str(caught.value)
    assert caught.value.issues[0].path == "spec.model.id"


FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}


def write_transformer(folder: Path, config: dict[str, Any], scheduler: dict[str, Any]) -> Path:
    """The configuration files of a model whose denoiser is a transformer."""
    write_model(folder, {}, scheduler=scheduler)
    (folder / "unet").rename(folder / "transformer")
    (folder / "transformer" / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize(
    ("config", "resolution"),
    [({"sample_size": 128}, 1024), ({"sample_size": 64}, 512), ({}, 1024)],
    ids=["1024 px", "512 px", "not set"],
)
def test_a_model_with_flow_matching_has_defaults_of_its_own(
    tmp_path: Path, config: dict[str, Any], resolution: int
) -> None:
    folder = write_transformer(tmp_path, config, FLOW)
    facts = JobFacts(BaseModelRef(id=str(folder)), folder, ("sks",), (4,), H100)
    plan = draft_plan(job_of({"model": {"id": str(folder)}}), facts)
    assert plan.resolution == resolution
    for sampler in (plan.sampler, plan.class_image_sampler):
        assert (sampler.steps, sampler.guidance_scale, sampler.scheduler) == (28, 3.5, "Default")


def test_settings_of_ddpm_schedules_are_rejected_for_models_with_flow_matching(tmp_path: Path) -> None:
    spec = job_of(
        {
            "training": {"minSnrGamma": 5, "resolution": 520},
            "priorPreservation": {"sampler": {"scheduler": "DPMSolverMultistep"}},
        }
    ).spec
    check_model(write_model(tmp_path, {}), spec)
    (tmp_path / "scheduler" / "scheduler_config.json").write_text(json.dumps(FLOW))
    with pytest.raises(UserError) as caught:
        check_model(tmp_path, spec)
    assert [str(issue) for issue in caught.value.issues] == [
        "spec.training.minSnrGamma: 5.0: does not apply to a model with flow matching, which has no DDPM noise "
        "schedule; remove it",
        "spec.priorPreservation.sampler.scheduler: 'DPMSolverMultistep': does not apply to a model with flow matching, "
        "which is sampled with FlowMatchEulerDiscreteScheduler; remove it, or set Default",
        "spec.training.resolution: 520: is not a multiple of 16, the side length of this model's patches in pixels; "
        "set 512",
    ]


@pytest.mark.parametrize(
    ("config", "dtype"),
    [({"dtype": "bfloat16"}, "bfloat16"), ({"torch_dtype": "bfloat16"}, "bfloat16"), ({}, "float32")],
    ids=["transformers 5", "transformers 4", "diffusers"],
)
def test_without_weights_the_number_format_is_that_of_the_configuration(
    tmp_path: Path, config: dict[str, str], dtype: str
) -> None:
    """As in a plan for a model on the Hub, whose weights are not downloaded."""
    from dreambooth_trainer.families.stored_dtype import stored_dtype

    (tmp_path / "config.json").write_text(json.dumps(config))
    assert str(stored_dtype(tmp_path)) == f"torch.{dtype}"
