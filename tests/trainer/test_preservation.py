"""Strategies of prior preservation: their losses and gradients, on all engines."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from test_plan import make_plan
from test_training import make_data, run_cases, with_prompts
from torch import Tensor, nn

from dreambooth_trainer.families.registry import open_family
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import CheckpointMetadata, read_metadata, write_metadata
from dreambooth_trainer.training.loop import run_step
from dreambooth_trainer.training.model import build_module
from dreambooth_trainer.training.module import DreamBoothModule
from dreambooth_trainer.training.plain_engine import PlainEngine

pytestmark = [pytest.mark.trainer, pytest.mark.usefixtures("one_thread")]

STEPS = 4
METHODS: dict[str, dict[str, Any]] = {
    "Full": {"method": "Full"},
    "LoRA": {"method": "LoRA", "lora": {"rank": 4, "alpha": 8}, "learningRate": 1e-2},
    "DoRA": {"method": "DoRA", "lora": {"rank": 4}, "learningRate": 1e-2},
}
# Weights that make the prior loss as large as the instance loss, so that an error in it is seen.
WEIGHTS = {"Images": 1.0, "Prediction": 5.0, "Bound": 0.5, "None": None}


def plan_of(model: Path, mode: str, method: str, stage: int = 1, **training: Any) -> Plan:
    weight = {} if WEIGHTS[mode] is None else {"lossWeight": WEIGHTS[mode]}
    training = {"steps": STEPS, "globalBatchSize": 4, "resolution": 32, "learningRate": 1e-3, "seed": 1, **training}
    # ZeRO-3 does not partition small parameters by default, and all parameters of tiny models are small.
    config = {"zero_optimization": {"stage3_param_persistence_threshold": 0}}
    spec = {
        "model": {"id": str(model)},
        "priorPreservation": {"mode": mode, **weight},
        "training": {**training, **METHODS[method], "deepspeed": {"config": config}},
    }
    return make_plan(spec).model_copy(update={"zero_stage": stage})


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "latents.safetensors")


def batch_of(examples: int) -> Batch:
    generator = torch.Generator().manual_seed(0)
    latents, noise = torch.randn(2, examples, 4, 8, 8, generator=generator)
    text = torch.randn(examples, 16, 32, generator=generator)
    encoded = {"latent_mean": latents, "latent_std": torch.zeros_like(latents), "text_embeds": text}
    u = torch.rand(examples, generator=generator)
    return Batch(encoded, {"latent": noise, "noise": noise}, u, num_instance_images=examples // 2)


def trained_parameters(module: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in module.named_parameters() if p.requires_grad}


def moved(module: DreamBoothModule) -> DreamBoothModule:
    """The module after some training: each trained weight has another value."""
    generator = torch.Generator().manual_seed(1)
    for parameter in trained_parameters(module).values():
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator)
    return module


def base_prediction(plan: Plan, batch: Batch) -> Tensor:
    folder = Path(plan.model.id)
    stage = open_family(folder).open(folder, ["unet"])
    with torch.no_grad():
        return stage.denoise(stage.modules, batch.examples, batch.noise, batch.u).output


@pytest.mark.parametrize("method", METHODS)
def test_the_base_model_is_the_teacher_also_after_training(tiny_model: Path, method: str) -> None:
    plan, batch = plan_of(tiny_model, "Prediction", method), batch_of(4)
    module = build_module(plan)
    assert module(batch)[2].item() == pytest.approx(0, abs=1e-10), "nothing has been forgotten yet"
    moved(module)
    losses = module(batch)
    learned = module.stage.denoise(module.stage.modules, batch.examples, batch.noise, batch.u).output
    expected = (learned - base_prediction(plan, batch))[2:].square().mean()
    torch.testing.assert_close(losses[2], expected)
    assert losses[2] > 1e-4
    losses[2].backward()
    assert all(p.grad is not None and p.requires_grad for p in trained_parameters(module).values())
    frozen = [p for p in module.parameters() if not p.requires_grad]
    assert frozen
    assert all(p.grad is None for p in frozen)


def test_class_examples_are_weighted_as_instance_images_are(tiny_model: Path) -> None:
    plan, batch = plan_of(tiny_model, "Prediction", "LoRA", minSnrGamma=0.01), batch_of(4)
    weights = build_module(plan).stage.denoise(build_module(plan).stage.modules, *_arguments(batch), 0.01).weights
    assert weights is not None
    assert weights[2] < 1
    module = moved(build_module(plan))
    learned = module.stage.denoise(module.stage.modules, *_arguments(batch)).output
    errors = (learned - base_prediction(plan, batch)).square().mean(dim=(1, 2, 3)) * weights
    torch.testing.assert_close(module(batch)[2], errors[2:].mean())


def _arguments(batch: Batch) -> tuple[Any, Any, Tensor]:
    return batch.examples, batch.noise, batch.u


def test_the_bound_is_the_squared_distance_of_all_weights(tiny_model: Path) -> None:
    module = build_module(plan_of(tiny_model, "Bound", "Full"))
    start = {name: p.detach().clone() for name, p in trained_parameters(module).items()}
    assert module(batch_of(2))[2].item() == 0
    moved(module)
    module(batch_of(2))[2].backward()
    offsets = {name: p.detach() - start[name] for name, p in trained_parameters(module).items()}
    distance = sum(offset.square().sum() for offset in offsets.values())
    torch.testing.assert_close(module(batch_of(2))[2].detach(), distance)
    for name, parameter in trained_parameters(module).items():
        torch.testing.assert_close(parameter.grad, 2 * offsets[name])


@pytest.mark.parametrize("method", ["LoRA", "DoRA"])
def test_the_bound_of_adapters_is_that_of_their_products(tiny_model: Path, method: str) -> None:
    module = build_module(plan_of(tiny_model, "Bound", method))
    layers = [layer for layer in module.modules() if isinstance(layer, LoraLayer)]
    start = [layer.lora_magnitude_vector[key].weight.detach().clone() for layer in layers for key in _magnitudes(layer)]
    assert module(batch_of(2))[2].item() == 0
    moved(module)
    after = [layer.lora_magnitude_vector[key].weight for layer in layers for key in _magnitudes(layer)]
    assert bool(after) == (method == "DoRA")
    expected = sum(layer.get_delta_weight("default").square().sum() for layer in layers)
    expected += sum((new - old).square().sum() for new, old in zip(after, start, strict=True))
    loss = module(batch_of(2))[2]
    torch.testing.assert_close(loss, expected)
    parameters = list(trained_parameters(module).values())
    for found, wanted in zip(
        torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters), strict=True
    ):
        torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-4)


def _magnitudes(layer: LoraLayer) -> list[str]:
    return list(layer.lora_magnitude_vector)


def test_new_tokens_are_not_bound(tiny_model: Path) -> None:
    """They are not in the base model. The adapters are bound."""
    spec = {"model": {"id": str(tiny_model)}, "priorPreservation": {"mode": "Bound"}}
    module = build_module(make_plan({**spec, "training": {"method": "PivotalTuning", "resolution": 32}}))
    bound = {id(weight) for _, weight in module.preservation.borrowed()}
    trained = trained_parameters(module)
    free = {name for name, parameter in trained.items() if id(parameter) not in bound}
    assert {name.rpartition(".")[2] for name in free} == {"rows"}
    assert len(bound) == len(trained) - len(free) > 0


def test_nothing_is_kept_without_preservation(tiny_model: Path) -> None:
    module = build_module(plan_of(tiny_model, "None", "Full"))
    losses = moved(module)(batch_of(2))
    assert losses[2] == 0
    assert losses[0] == losses[1]


@pytest.mark.parametrize("mode", WEIGHTS)
def test_checkpoints_contain_the_trained_weights_only(tiny_model: Path, mode: str) -> None:
    names = trained_parameters(build_module(plan_of(tiny_model, mode, "Full"))).keys()
    assert names == trained_parameters(build_module(plan_of(tiny_model, "None", "Full"))).keys()


def train_alone(plan: Plan, data: Path, folder: Path, resume: Path | None = None) -> list[list[float]]:
    """Losses of a single process without DeepSpeed, from step 2 if it resumes. It saves a checkpoint at step 2."""
    torch.manual_seed(plan.spec.training.seed)  # as workers do: adapters start with random values
    engine, losses = PlainEngine(plan, resume), list[list[float]]()
    cached: TrainingData = with_prompts(load_data(data), "text_embeds")
    for step in range(0 if resume is None else read_metadata(resume).step, STEPS):
        if step == 2 and resume is None:
            folder.mkdir()
            engine.save(folder)
            write_metadata(folder, CheckpointMetadata(step, 1, plan.zero_stage, plan.precision))
        losses.append(run_step(engine, plan, cached, step, 0, 1).tolist())
    return losses


@pytest.mark.parametrize("method", ["Full", "LoRA"])
@pytest.mark.parametrize("mode", ["Prediction", "Bound"])
def test_a_resumed_run_still_knows_the_base_model(
    tiny_model: Path, data: Path, tmp_path: Path, mode: str, method: str
) -> None:
    plan = plan_of(tiny_model, mode, method)
    losses = train_alone(plan, data, tmp_path / "saved")
    assert losses[0][2] == pytest.approx(0, abs=1e-10)
    assert all(later[2] > 1e-4 for later in losses[1:])
    assert train_alone(plan, data, tmp_path, tmp_path / "saved") == losses[2:]


@dataclass(frozen=True)
class Case:
    """A run with two workers, or with one that resumes from it."""

    mode: str
    method: str
    stage: int

    def __str__(self) -> str:
        return f"{self.mode} {self.method} {self.stage}"


FEW = [Case("Prediction", "Full", 3), Case("Prediction", "LoRA", 3), Case("Bound", "Full", 3), Case("Bound", "LoRA", 3)]
MANY = [Case(mode, m, stage) for mode in WEIGHTS for m in METHODS for stage in (1, 2, 3) if m != "DoRA" or stage < 3]


def close(actual: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), atol=2e-5, rtol=1e-3)


def compare(model: Path, data: Path, folder: Path, cases: list[Case], *, also_back: bool = False) -> None:
    """Losses with two workers are those of one process, also after a resume from one process.

    Args:
        also_back: and after a resume with one process, for which checkpoints are converted.
    """

    def plan(case: Case) -> Plan:
        return plan_of(model, case.mode, case.method, case.stage)

    alone = {str(case): [sums[0] for sums in train_alone(plan(case), data, folder / f"one {case}")] for case in cases}
    started = [{"name": str(case), "plan": plan(case), "save": folder / f"two {case}", "save_at": 2} for case in cases]
    resumed = [
        {"name": f"{case} again", "plan": plan(case), "resume": folder / f"one {case}"}
        for case in cases
        if case.mode == "Bound"
    ]
    losses = run_cases(2, [*started, *resumed], data, folder)
    for case in cases:
        close(losses[str(case)], alone[str(case)])
        if case.mode == "Bound":
            close(losses[f"{case} again"], alone[str(case)][2:])
        if case.mode == "Bound" and also_back:
            again = train_alone(plan(case), data, folder / f"again {case}", folder / f"two {case}")
            close([sums[0] for sums in again], alone[str(case)][2:])


@pytest.mark.long
def test_losses_do_not_depend_on_zero_3(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    compare(tiny_model, data, tmp_path, FEW)


@pytest.mark.long
def test_losses_do_not_depend_on_the_stage_of_zero(tiny_model: Path, data: Path, tmp_path: Path) -> None:
    compare(tiny_model, data, tmp_path, MANY, also_back=True)
