"""Training on the CPU, without Ray: engines, ZeRO stages, precisions, world sizes and checkpoints.

All cases of a world size run in the same processes, because starting processes takes most of the time.
"""

from __future__ import annotations

import errno
import json
import os
import socket
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.multiprocessing as mp
from PIL import Image
from safetensors.torch import load_file

from dreambooth_api.job import DreamBoothJob
from dreambooth_trainer.planning.plan import Plan, SamplerSettings, fill_defaults
from dreambooth_trainer.store.candidates import Candidates
from dreambooth_trainer.store.validations import Validations
from dreambooth_trainer.training.cache import EncodedImages, TrainingData, load_data, save_data
from dreambooth_trainer.training.checkpoint import (
    CheckpointMetadata,
    checkpoint_due,
    read_metadata,
    trained_weights,
    write_metadata,
)
from dreambooth_trainer.training.messages import StepRecord
from dreambooth_trainer.training.records import LossRecorder
from dreambooth_trainer.training.worker import fatal_error

pytestmark = pytest.mark.trainer

STEPS = 4
FP32 = {"atol": 2e-5, "rtol": 2e-4}


def make_plan(model: Path, stage: int = 1, precision: str = "fp32", workers: int = 1, **training: Any) -> Plan:
    job = DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": "engine"},
            "spec": {
                "model": {"id": str(model)},
                "subject": {"class": "dog", "images": {"uri": "x"}},
                "cluster": {"workers": workers},
                "training": {"steps": STEPS, "learningRate": 1e-3, "globalBatchSize": 4, "resolution": 32, **training},
            },
        }
    )
    plan = fill_defaults(job, image_count=4, identifiers=["sks"], zero_stage=stage, precision=precision)
    return plan.model_copy(update={"sampler": SamplerSettings(steps=2, guidance_scale=3)})


def make_data(path: Path) -> Path:
    """Write a cache of random latents."""
    generator = torch.Generator().manual_seed(0)

    def kind(count: int) -> EncodedImages:
        latents = {
            "latent_mean": torch.randn(count, 4, 8, 8, generator=generator),
            "latent_std": torch.full((count, 4, 8, 8), 0.1),
        }
        prompts = {
            "input_ids": torch.randint(0, 50, (1, 16), generator=generator),
            "text_embeds": torch.randn(1, 16, 32, generator=generator),
        }
        return EncodedImages(
            latents,
            prompts,
            torch.tensor([[0, count]]),
            torch.zeros(count, dtype=torch.long),
            torch.ones(count, dtype=torch.long),
        )

    save_data(TrainingData(kind(3), kind(5)), path)
    return path


def with_prompts(data: TrainingData, name: str) -> TrainingData:
    """The data with prompts in one form only."""
    kinds = (kind for kind in (data.instance_images, data.class_images) if kind)
    return TrainingData(*(replace(kind, prompts={name: kind.prompts[name]}) for kind in kinds))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data") / "latents.safetensors")


def _rank(rank: int, world_size: int, port: int, cases: list[dict[str, Any]], data: Path, out: Path) -> None:
    import torch.distributed as dist

    from dreambooth_trainer.training.deepspeed_engine import ZeroEngine
    from dreambooth_trainer.training.engine import Engine, open_engine
    from dreambooth_trainer.training.loop import run_step
    from dreambooth_trainer.training.saving import save_candidate
    from dreambooth_trainer.training.validation import Validator

    torch.set_num_threads(1)
    os.environ["LOCAL_RANK"] = str(rank)  # DeepSpeed requires this variable of its launcher
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=world_size)
    losses: dict[str, list[float]] = {}

    def any_rank(flags: tuple[bool, ...]) -> list[bool]:
        reduced = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(reduced, dist.ReduceOp.MAX)
        return [bool(flag) for flag in reduced.tolist()]

    for case in cases:
        plan: Plan = case["plan"]
        cached = load_data(case.get("data", data))
        if "data" not in case:
            cached = with_prompts(cached, "input_ids" if plan.train_text_encoder else "text_embeds")
        saved: Path | None = case.get("resume")
        torch.manual_seed(plan.spec.training.seed)
        open_case = ZeroEngine if case.get("deepspeed") else open_engine
        engine: Engine = open_case(plan, world_size, saved)
        validator = None
        if "images" in case:
            validations = Validations(case["images"], "key", 2)
            validator = Validator(plan, engine, validations, rank, world_size, any_rank)
        recorder = LossRecorder(
            [] if saved is None else [StepRecord(0, 0.0, 0.0, 0.0, 0.0, 1)] * read_metadata(saved).step,
            world_size=world_size,
            num_micro_batches=world_size * plan.spec.training.gradient_accumulation_steps,
            has_prior_loss=True,
        )
        first = len(recorder.records)
        for step in range(first, case.get("until", STEPS) + 1):
            if step == case.get("save_at"):
                folder: Path = case["save"]
                folder.mkdir(parents=True, exist_ok=True)
                engine.save(folder)
                engine.save_weights(folder, rank)
                if rank == 0:
                    write_metadata(folder, CheckpointMetadata(step, world_size, plan.zero_stage, plan.precision))
                dist.barrier()
            if validator is not None and validator.due(step):
                validator.run(step, lambda: False)
                if "candidates" in case and step:
                    save_candidate(engine, Candidates(case["candidates"]), step, rank, any_rank)
            if step < case.get("until", STEPS):
                rate = engine.learning_rate
                recorder.add(run_step(engine, plan, cached, step, rank, world_size), rate)
                recorder.read()
        if "weights" in case:
            case["weights"].mkdir(parents=True, exist_ok=True)
            engine.save_weights(case["weights"], rank)
        losses[case["name"]] = [record.loss for record in recorder.records[first:]]
    if rank == 0:
        out.write_text(json.dumps(losses))
    dist.destroy_process_group()


def run_cases(world_size: int, cases: list[dict[str, Any]], data: Path, folder: Path) -> dict[str, list[float]]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    out = folder / f"losses-{world_size}.json"
    mp.start_processes(_rank, (world_size, port, cases, data, out), nprocs=world_size, start_method="spawn")
    return json.loads(out.read_text())


LORA: dict[str, Any] = {
    "method": "LoRA",
    "lora": {"rank": 4, "alpha": 8},
    "textEncoder": {"train": True, "learningRate": 1e-2},
    "lrScheduler": "Linear",
}
VALIDATED = {"validation": {"prompts": ["a {} on the beach", "a red {}"], "everySteps": 2}}
# With three workers, ZeRO-3 partitions a bias of four weights unevenly.
UNTRAINED = [(workers, stage) for workers in (1, 2, 3) for stage in (1, 2, 3)]


@pytest.fixture(scope="module")
def untrained(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints in bf16 before the first step, in folders named <workers>-<stage>."""
    folder = tmp_path_factory.mktemp("untrained")
    for workers in (1, 2, 3):
        cases: list[dict[str, Any]] = []
        for stage in (1, 2, 3):
            name = f"{workers}-{stage}"
            plan = make_plan(tiny_model, stage, "bf16", textEncoder={"train": True}, globalBatchSize=6)
            cases.append({"name": name, "plan": plan, "save": folder / name, "save_at": 0, "until": 0})
        run_cases(workers, cases, data, folder)
    return folder


@pytest.fixture(scope="module")
def runs(tiny_model: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[float]]]:
    """Losses by world size and case. "one" and "two again" resume from checkpoints that "two" saves at step 2."""
    folder = tmp_path_factory.mktemp("runs")

    def case(name: str, stage: int, **more: Any) -> dict[str, Any]:
        precision = more.pop("precision", "fp32")
        keys = ("resume", "save", "save_at", "until", "deepspeed", "images", "candidates")
        extra = {key: more.pop(key) for key in keys if key in more}
        return {"name": name, "plan": make_plan(tiny_model, stage, precision, **more), **extra}

    def saved(stage: int | str) -> Path:
        return folder / f"stage-{stage}"

    one = run_cases(  # "one" saves checkpoints for "two", and the other way around
        1,
        [
            case("plain", 1, save=saved("plain"), save_at=2),
            case("plain at the end", 1, save=saved("plain-end"), save_at=STEPS),
            *(
                case(f"deepspeed {stage}", stage, deepspeed=True, save=saved(f"one-{stage}"), save_at=STEPS)
                for stage in (1, 2)
            ),
            case("plain again", 1, resume=saved("plain")),
            case("plain bf16", 1, precision="bf16", save=saved("plain-bf16"), save_at=2),
            case("plain bf16 again", 1, precision="bf16", resume=saved("plain-bf16")),
            case("lora plain", 1, **LORA, save=saved("plain-lora"), save_at=2),
            case("lora at the end", 1, **LORA, save=folder / "lora", save_at=STEPS),
            case("checkpointing", 1, gradientCheckpointing=True),
            case("accumulation", 1, gradientAccumulationSteps=2),
            case("lora checkpointing", 1, **LORA, gradientCheckpointing=True),
        ],
        data,
        folder,
    )
    two = run_cases(
        2,
        [
            *(case(f"zero-{stage}", stage, save=saved(stage), save_at=2) for stage in (1, 2, 3)),
            *(case(f"zero-{stage} again", stage, resume=saved(stage)) for stage in (1, 2, 3)),
            *(case(f"zero-{stage} from plain", stage, resume=saved("plain")) for stage in (1, 2, 3)),
            *(
                case(f"zero-{stage} bf16", stage, precision="bf16", save=saved(f"bf16-{stage}"), save_at=2)
                for stage in (1, 2, 3)
            ),
            *(
                case(f"zero-{stage} bf16 again", stage, precision="bf16", resume=saved(f"bf16-{stage}"))
                for stage in (1, 2, 3)
            ),
            *(case(f"lora {stage}", stage, **LORA, save=saved(f"lora-{stage}"), save_at=2) for stage in (2, 3)),
            *(case(f"lora {stage} again", stage, **LORA, resume=saved(f"lora-{stage}")) for stage in (2, 3)),
            *(case(f"lora {stage} from plain", stage, **LORA, resume=saved("plain-lora")) for stage in (2, 3)),
            case("zero-2 from zero-3", 2, resume=saved(3)),
            case("full at the end", 3, save=folder / "end", save_at=STEPS),
            *(
                case(
                    f"validated {stage}",
                    stage,
                    **VALIDATED,
                    images=folder / f"images-{stage}",
                    candidates=folder / f"candidates-{stage}",
                )
                for stage in (2, 3)
            ),
            case("validated bf16", 3, precision="bf16", **VALIDATED, images=folder / "images-bf16"),
        ],
        data,
        folder,
    )
    one = one | run_cases(
        1,
        [
            *(case(f"resumed lora {stage}", stage, **LORA, resume=saved(f"lora-{stage}")) for stage in (2, 3)),
            *(case(f"resumed zero-{stage}", stage, resume=saved(stage)) for stage in (1, 2, 3)),
        ],
        data,
        folder,
    )
    return {"one": one, "two": two, "folder": {str(folder): []}}


def close(actual: list[float], expected: list[float]) -> None:
    torch.testing.assert_close(torch.tensor(actual), torch.tensor(expected), **FP32)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_do_not_depend_on_zero_stage_and_world_size(runs: dict, stage: int) -> None:
    close(runs["two"][f"zero-{stage}"], runs["one"]["plain"])


def test_losses_are_finite_and_change(runs: dict) -> None:
    assert all(losses == pytest.approx(losses, nan_ok=False) for losses in runs["two"].values())
    assert runs["one"]["plain"][-1] != runs["one"]["plain"][0]


@pytest.mark.parametrize(
    ("case", "plain"),
    [("accumulation", "plain"), ("checkpointing", "plain"), ("lora checkpointing", "lora plain")],
)
def test_accumulation_and_gradient_checkpointing_do_not_change_losses(runs: dict, case: str, plain: str) -> None:
    close(runs["one"][case], runs["one"][plain])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_after_a_resume_equal_those_of_an_uninterrupted_run(runs: dict, stage: int) -> None:
    close(runs["two"][f"zero-{stage} again"], runs["two"][f"zero-{stage}"][2:])
    close(runs["two"][f"zero-{stage} bf16 again"], runs["two"][f"zero-{stage} bf16"][2:])


@pytest.mark.parametrize("stage", [1, 2])
def test_the_plain_engine_trains_like_deepspeed(runs: dict, stage: int) -> None:
    close(runs["one"]["plain"], runs["one"][f"deepspeed {stage}"])
    (folder,) = map(Path, runs["folder"])
    plain, deepspeed = (trained_weights(folder / f"stage-{name}") for name in ("plain-end", f"one-{stage}"))
    assert plain.keys() == deepspeed.keys()
    for name, weights in plain.items():
        torch.testing.assert_close(weights, deepspeed[name], **FP32)


def test_the_plain_engine_resumes_from_a_checkpoint(runs: dict) -> None:
    assert runs["one"]["plain again"] == runs["one"]["plain"][2:]
    assert runs["one"]["plain bf16 again"] == runs["one"]["plain bf16"][2:]
    assert runs["one"]["plain bf16"] == pytest.approx(runs["one"]["plain"], rel=0.05)


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_of_one_worker_resumes_with_two(runs: dict, stage: int) -> None:
    close(runs["two"][f"zero-{stage} from plain"], runs["one"]["plain"][2:])


def test_a_checkpoint_resumes_at_another_zero_stage(runs: dict) -> None:
    close(runs["two"]["zero-2 from zero-3"], runs["two"]["zero-3"][2:])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_a_checkpoint_of_two_workers_resumes_with_one(runs: dict, stage: int) -> None:
    close(runs["one"][f"resumed zero-{stage}"], runs["two"][f"zero-{stage}"][2:])


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_losses_in_bf16_are_close_to_fp32(runs: dict, stage: int) -> None:
    actual, expected = runs["two"][f"zero-{stage} bf16"], runs["two"][f"zero-{stage}"]
    assert actual == pytest.approx(expected, rel=0.05)


def test_validation_with_several_workers_does_not_change_losses(runs: dict) -> None:
    for stage in (2, 3):
        close(runs["two"][f"validated {stage}"], runs["two"][f"zero-{stage}"])
    close(runs["two"]["validated bf16"], runs["two"]["zero-3 bf16"])
    (folder,) = map(Path, runs["folder"])
    shared, partitioned = (
        [
            np.asarray(Image.open(folder / f"images-{stage}" / f"step-00000{step}" / f"{number}.png"), dtype=float)
            for step in (0, 2, 4)
            for number in (0, 1)
        ]
        for stage in (2, 3)
    )
    for one, other in zip(shared, partitioned, strict=True):
        assert np.abs(one - other).max() <= 2, "each worker generates some of the images, or all of them together"
    assert np.abs(shared[0] - shared[-2]).max() > 2, "the last image shows the trained weights"
    assert len(list((folder / "images-bf16").rglob("*.png"))) == 6


@pytest.mark.parametrize("stage", [2, 3])
def test_weights_of_validated_steps_are_consolidated_from_all_shards(runs: dict, stage: int) -> None:
    (folder,) = map(Path, runs["folder"])
    candidates = Candidates(folder / f"candidates-{stage}")
    assert candidates.steps() == [2, STEPS]
    weights, expected = trained_weights(candidates.folder(2)), trained_weights(folder / f"stage-{stage}")
    assert weights.keys() == expected.keys()
    for name, tensor in weights.items():
        close(tensor.flatten().tolist(), expected[name].flatten().tolist())
    last = trained_weights(candidates.folder(STEPS))
    assert max(float((last[name] - tensor).abs().max()) for name, tensor in weights.items()) > 1e-4


def test_trained_weights_are_consolidated_from_all_shards(runs: dict, tiny_model: Path) -> None:
    from dreambooth_trainer.families.registry import open_family

    (folder,) = map(Path, runs["folder"])
    weights = trained_weights(folder / "end")
    base = open_family(tiny_model).open(tiny_model, ["unet"]).modules["unet"].state_dict()
    assert {name.removeprefix("trained.unet.") for name in weights} == set(base)
    moved = [float((weights[f"trained.unet.{name}"].detach() - tensor).abs().max()) for name, tensor in base.items()]
    assert 0 < max(moved) < 0.1


def test_lora_trains_adapters_in_denoiser_and_text_encoder(runs: dict) -> None:
    (folder,) = map(Path, runs["folder"])
    adapters = trained_weights(folder / "lora")
    assert all(".lora_" in name for name in adapters)
    layers: dict[str, set[str]] = {name.split(".")[1]: set() for name in adapters}
    for name, weights in adapters.items():
        # B starts at zero.
        assert ".lora_A." in name or weights.any(), name
        layers[name.split(".")[1]].add(name.partition(".lora_")[0].rpartition(".")[2])
    assert layers["text_encoder"] == {"q_proj", "k_proj", "v_proj", "out_proj"}
    assert {"to_q", "conv1", "proj_in"} < layers["unet"]


def test_lora_trains_adapters_only_with_the_learning_rates_of_the_plan(tiny_model: Path) -> None:
    from dreambooth_trainer.training.model import build_module, build_optimizer

    plan = make_plan(tiny_model, **{**LORA, "textEncoder": {"train": True, "learningRate": 1e-5}})
    module = build_module(plan)
    names = {p: name for name, p in module.named_parameters()}
    denoiser, text_encoder = build_optimizer(plan, module).param_groups
    assert (denoiser["lr"], text_encoder["lr"]) == (1e-3, 1e-5)
    for group, prefix in ((denoiser, "trained.unet."), (text_encoder, "trained.text_encoder.")):
        found = [names[p] for p in group["params"]]
        assert found
        assert all(name.startswith(prefix) and ".lora_" in name for name in found)
    assert sum(p.requires_grad for p in names) == len(denoiser["params"]) + len(text_encoder["params"])


@pytest.mark.parametrize("stage", [2, 3])
def test_a_lora_checkpoint_resumes_at_any_world_size(runs: dict, stage: int) -> None:
    close(runs["two"][f"lora {stage}"], runs["one"]["lora plain"])
    close(runs["two"][f"lora {stage} again"], runs["two"][f"lora {stage}"][2:])
    close(runs["one"][f"resumed lora {stage}"], runs["two"][f"lora {stage}"][2:])
    close(runs["two"][f"lora {stage} from plain"], runs["one"]["lora plain"][2:])


@pytest.mark.parametrize(("workers", "stage"), UNTRAINED)
def test_zero_steps_in_bf16_keep_the_weights_of_the_base_model(
    untrained: Path, tiny_model: Path, workers: int, stage: int
) -> None:
    from dreambooth_trainer.families.registry import open_family

    modules = open_family(tiny_model).open(tiny_model, ["unet", "text_encoder"]).modules
    base = {
        f"trained.{key}.{name}": p.detach() for key, module in modules.items() for name, p in module.named_parameters()
    }
    weights = trained_weights(untrained / f"{workers}-{stage}")
    assert weights.keys() == base.keys()
    assert [name for name in base if not torch.equal(weights[name], base[name])] == []


def test_zero_steps_of_an_fp32_model_publish_its_weights_exactly(
    untrained: Path, tiny_model: Path, tmp_path: Path
) -> None:
    from dreambooth_trainer.phases.train import save_trained_model
    from dreambooth_trainer.store.folder import JobFolder

    plan, folder = make_plan(tiny_model, 1, "bf16", textEncoder={"train": True}), JobFolder(tmp_path)
    save_trained_model(plan, untrained / "1-1", folder)
    for path in sorted(tiny_model.glob("*/*.safetensors")):
        base, published = load_file(path), load_file(folder.trained / path.parent.name / path.name)
        assert base.keys() == published.keys()
        assert any(not torch.equal(weights, weights.half().float()) for weights in base.values())
        assert [name for name in base if not torch.equal(published[name], base[name])] == [], path.parent.name


@pytest.mark.parametrize(
    ("step", "every_steps", "seconds", "due"),
    [(7, None, 599, False), (7, None, 600, True), (8, 4, 1, True), (7, 4, 1, False), (7, 4, 600, True)],
)
def test_checkpoints_are_saved_by_time_and_by_steps(
    step: int, every_steps: int | None, seconds: float, due: bool
) -> None:
    assert checkpoint_due(step, every_steps, seconds) is due


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (OSError(errno.ENOSPC, "x"), "No space left on device"),
        (PermissionError(errno.EACCES, "x"), "Permission denied"),
        (torch.OutOfMemoryError("CUDA out of memory"), "gradientCheckpointing: true"),
    ],
)
def test_errors_that_a_restart_cannot_fix_are_fatal(error: Exception, sentence: str) -> None:
    fatal = fatal_error(error)
    assert fatal is not None
    assert sentence in fatal.message


@pytest.mark.parametrize("error", [ConnectionResetError(errno.ECONNRESET, "x"), OSError("x"), RuntimeError("NCCL")])
def test_errors_that_a_restart_may_fix_are_not_fatal(error: Exception) -> None:
    assert fatal_error(error) is None
