"""ZeRO with every model family and method: losses and weights are those of a single process without DeepSpeed.

The threshold below which ZeRO-3 does not partition a parameter is set to zero, because all parameters of tiny models
are below the default. All cases with two workers run in the same processes.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from test_plan import make_plan
from test_training import run_cases

from dreambooth_api.methods import METHODS
from dreambooth_trainer.families.base import live_text_encoders
from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.methods.tokens import add_tokens
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.cache import EncodedImages, TrainingData, load_data, save_data
from dreambooth_trainer.training.checkpoint import WEIGHTS_FILE, CheckpointMetadata, read_metadata, write_metadata
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.long, pytest.mark.usefixtures("one_thread")]

STEPS = 4
TOKENS = {"textualInversion": {"vectors": 2}}
ADAPTERS = {"lora": {"rank": 4, "alpha": 8}}
# By name: a model, and the settings of its training.
CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "xl": ("tiny_xl_model", {"method": "Full"}),
    "sd3": ("tiny_sd3_model", {"method": "Full"}),
    "flux": ("tiny_flux_model", {"method": "Full"}),
    "z-image": ("tiny_z_image_model", {"method": "Full"}),
    "LoRA": ("tiny_model", {"method": "LoRA", **ADAPTERS}),
    "DoRA": ("tiny_model", {"method": "DoRA", **ADAPTERS}),
    "TextualInversion": ("tiny_xl_model", {"method": "TextualInversion", **TOKENS}),
    "flux PivotalTuning": ("tiny_flux_model", {"method": "PivotalTuning", **ADAPTERS, **TOKENS}),
    "PivotalTuning": ("tiny_model", {"method": "PivotalTuning", **ADAPTERS, **TOKENS}),
}
RESUMED = ("TextualInversion", "PivotalTuning")
SUBJECTS = [
    {"class": "dog", "images": {"uri": "x"}, "identifier": "sks"},
    {"class": "cat", "images": {"uri": "x"}, "identifier": "zwx"},
]
PROMPTS = ["a sks dog", "a zwx cat", "a dog", "a cat"]


def stages_of(name: str) -> range:
    """ZeRO stages of a case."""
    return range(1, METHODS[CASES[name][1]["method"]].max_zero_stage + 1)


def plan_of(model: Path, training: dict[str, Any], stage: int = 1) -> Plan:
    spec = {
        "model": {"id": str(model)},
        "subject": None,
        "subjects": SUBJECTS,
        "training": {
            "steps": STEPS,
            "globalBatchSize": 4,
            "resolution": 32,
            "learningRate": 1e-3,
            "seed": 1,
            "deepspeed": {"config": {"zero_optimization": {"stage3_param_persistence_threshold": 0}}},
            **training,
        },
    }
    return make_plan(spec).model_copy(update={"zero_stage": stage})


def write_data(plan: Plan, path: Path) -> Path:
    """A cache of random latents, four images of each subject and of its class, with the prompts of the plan."""
    folder = Path(plan.model.id)
    family, generator = open_family(folder), torch.Generator().manual_seed(0)
    live = live_text_encoders(family, plan)
    stage = family.open(folder, [name for name in family.text_encoders if name not in live])
    add_tokens(stage, plan)
    encoded = {name: tensor.contiguous() for name, tensor in stage.encode_prompts(PROMPTS, live).items()}

    def kind(first: int) -> EncodedImages:
        shapes = family.image_shapes(folder, 32)
        images = {name: torch.randn(8, *shape, generator=generator).abs() / 2 for name, shape in shapes.items()}
        indices = torch.tensor([first] * 4 + [first + 1] * 4)
        ranges, weights = torch.tensor([[0, 4], [4, 8]]), torch.ones(8, dtype=torch.long)
        prompts = {name: tensor.clone() for name, tensor in encoded.items()}
        return EncodedImages(images, prompts, ranges, indices, weights)

    save_data(TrainingData(kind(0), kind(2) if plan.spec.has_class_examples else None), path)
    return path


def train_alone(plan: Plan, data: Path, folder: Path, resume: Path | None = None) -> list[float]:
    """Losses of a single process without DeepSpeed. It saves a checkpoint at step 2, and its weights at the end."""
    torch.manual_seed(plan.spec.training.seed)  # as workers do: adapters start with random values
    engine, cached, losses = PlainEngine(plan, resume), load_data(data), list[float]()
    folder.mkdir()
    for step in range(0 if resume is None else read_metadata(resume).step, STEPS):
        if step == 2 and resume is None:
            engine.save(folder)
            write_metadata(folder, CheckpointMetadata(step, 1, plan.zero_stage, plan.precision))
        losses.append(float(run_step(engine, plan, cached, step, 0, 1)[0]))
    engine.save_weights(folder, 0)
    return losses


@dataclass
class Runs:
    """Losses by case: a family or a method, and a stage, or "alone". Folders of the same names have the weights."""

    folder: Path
    losses: dict[str, list[float]]

    def weights(self, case: str) -> dict[str, torch.Tensor]:
        folder = self.folder / case
        return load_file((folder / "end" if (folder / "end").exists() else folder) / WEIGHTS_FILE)


@pytest.fixture(scope="module")
def runs(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Runs:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    folder, losses, cases = tmp_path_factory.mktemp("runs"), dict[str, list[float]](), list[dict[str, Any]]()
    for name, (model, training) in CASES.items():
        plan = plan_of(request.getfixturevalue(model), training)
        data = write_data(plan, folder / f"{name}.safetensors")
        losses[f"{name} alone"] = train_alone(plan, data, folder / f"{name} alone")
        losses[f"{name} alone again"] = train_alone(plan, data, folder / f"{name} again", folder / f"{name} alone")

        def case(title: str, stage: int, plan: Plan = plan, data: Path = data, **extra: Any) -> dict[str, Any]:
            staged = plan.model_copy(update={"zero_stage": stage})
            return {"name": title, "plan": staged, "data": data, "weights": folder / title / "end", **extra}

        for stage in stages_of(name):
            title = f"{name} {stage}"
            cases.append(case(title, stage, save=folder / title / "saved", save_at=2))
        if name in RESUMED:
            cases.append(case(f"{name} 2 again", 2, resume=folder / f"{name} 2" / "saved"))
            cases.append(case(f"{name} 3 from alone", 3, resume=folder / f"{name} alone"))
    losses |= run_cases(2, cases, data, folder)
    for name in RESUMED:
        plan = plan_of(request.getfixturevalue(CASES[name][0]), CASES[name][1])
        data, saved = folder / f"{name}.safetensors", folder / f"{name} 3" / "saved"
        losses[f"{name} alone from 3"] = train_alone(plan, data, folder / f"{name} alone from 3", saved)
    torch.set_num_threads(threads)
    return Runs(folder, losses)


def close(actual: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=2e-5, rtol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_losses_and_weights_do_not_depend_on_zero(runs: Runs, name: str) -> None:
    """Adam divides gradients near zero by their rounding errors: some weights differ by a part of the rate 1e-3."""
    weights = runs.weights(f"{name} alone")
    for stage in stages_of(name):
        close(runs.losses[f"{name} {stage}"][:2], runs.losses[f"{name} alone"][:2])
        found = runs.weights(f"{name} {stage}")
        assert found.keys() == weights.keys()
        differences = torch.cat([(found[key] - weights[key]).abs().flatten() for key in weights])
        print(name, stage, runs.losses[f"{name} {stage}"], runs.losses[f"{name} alone"], differences.mean())
        assert differences.mean() < 1e-4


@pytest.mark.parametrize("name", RESUMED)
def test_new_tokens_of_two_subjects_resume_at_any_world_size(runs: Runs, name: str) -> None:
    assert runs.losses[f"{name} alone again"] == runs.losses[f"{name} alone"][2:]
    close(runs.losses[f"{name} 2 again"], runs.losses[f"{name} 2"][2:])
    close(runs.losses[f"{name} 3 from alone"], runs.losses[f"{name} alone"][2:])
    close(runs.losses[f"{name} alone from 3"], runs.losses[f"{name} 3"][2:])
    rows = [tensor for key, tensor in runs.weights(f"{name} 3").items() if key.endswith(".rows")]
    assert {len(tensor) for tensor in rows} == {4}, "two subjects with two vectors each"
