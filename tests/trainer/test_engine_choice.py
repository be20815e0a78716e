"""Decisions of a plan about the training engine, number formats and compilation."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
import torch
from test_hardware import SD15
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_trainer.cluster.hardware import GIB, Hardware
from dreambooth_trainer.planning import precision
from dreambooth_trainer.planning.fit import plan_stage
from dreambooth_trainer.planning.plan import COMPILE_MIN_STEPS
from dreambooth_trainer.training.deepspeed_config import deepspeed_config
from dreambooth_trainer.training.messages import StepRecord
from dreambooth_trainer.training.records import LossRecorder

OFFLOAD = {"deepspeed": {"offloadOptimizer": True}}


@pytest.mark.parametrize(
    ("training", "gpus", "world_size", "deepspeed"),
    [
        ({}, 0, 1, False),
        ({}, 1, 1, False),
        ({}, 1, 2, True),
        ({"deepspeed": {"stage": "2"}}, 1, 1, False),
        (OFFLOAD, 1, 1, True),
        (OFFLOAD, 0, 1, False),
        ({"deepspeed": {"config": {"steps_per_print": 1}}}, 0, 1, True),
    ],
)
def test_deepspeed_trains_where_there_is_something_to_partition(
    training: dict[str, Any], gpus: int, world_size: int, deepspeed: bool
) -> None:
    assert make_plan({"training": training}, gpus=gpus).needs_deepspeed(world_size) is deepspeed


@pytest.mark.parametrize(
    ("steps", "training", "gpus", "compiled"),
    [
        (COMPILE_MIN_STEPS, {}, 1, True),
        (COMPILE_MIN_STEPS, {}, 0, False),
        (COMPILE_MIN_STEPS, {"globalBatchSize": 2}, 2, False),
        (COMPILE_MIN_STEPS, {"compile": "Never"}, 1, False),
        (COMPILE_MIN_STEPS - 1, {}, 1, False),
        (COMPILE_MIN_STEPS // 2, {"gradientAccumulationSteps": 2}, 1, True),
    ],
)
def test_long_runs_on_gpus_are_compiled(steps: int, training: dict[str, Any], gpus: int, compiled: bool) -> None:
    assert make_plan({"training": {"steps": steps, **training}}, gpus=gpus).compiled is compiled


@pytest.mark.parametrize(
    ("gpu", "bf16", "expected"), [(True, True, "bf16"), (True, False, "fp16"), (False, False, "fp32")]
)
def test_the_default_precision_is_the_fastest_that_the_device_has(gpu: bool, bf16: bool, expected: str) -> None:
    assert precision.default_precision(gpu=gpu, bf16=bf16) == expected


@pytest.mark.parametrize(
    ("spec", "gpus", "fields"),
    [
        ({"training": {"precision": "fp16"}}, 0, ["spec.training.precision"]),
        ({"training": {"precision": "fp16", "optimizer": "AdamW8bit"}}, 0, ["precision", "optimizer"]),
        ({"training": {"optimizer": "AdamW8bit"}, "cluster": {"workers": 2}}, 1, ["spec.training.optimizer"]),
        ({"training": {"optimizer": "AdamW8bit", **OFFLOAD}}, 1, ["spec.training.optimizer"]),
    ],
)
def test_number_formats_that_the_workers_do_not_support_are_rejected(
    spec: dict[str, Any], gpus: int, fields: list[str]
) -> None:
    with pytest.raises(UserError) as caught:
        precision.check_number_formats(make_plan(spec, gpus=gpus))
    assert [issue.path.removeprefix("spec.training.") for issue in caught.value.issues] == [
        field.removeprefix("spec.training.") for field in fields
    ]


def test_an_8_bit_optimizer_needs_an_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = make_plan({"training": {"optimizer": "AdamW8bit"}}, gpus=1)
    precision.check_number_formats(plan)
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"install dreambooth-operator\[bitsandbytes\]"):
        precision.check_packages(plan)
    monkeypatch.setattr(precision.importlib.util, "find_spec", lambda name: object())
    precision.check_packages(plan)


def test_a_single_process_needs_less_memory_without_deepspeed() -> None:
    gpu = Hardware(1, "A100", 80 * GIB, bf16=True)
    spec = {"model": {"id": "m"}, "training": {"optimizer": "AdamW"}}
    plain = plan_stage(make_plan(spec, gpus=1, precision="bf16"), SD15, gpu).need
    weights = SD15.trainable
    assert plain.weights + plain.gradients + plain.optimizer == weights * (4 + 4 + 8)
    spec["training"] = {"optimizer": "AdamW8bit"}
    assert plan_stage(make_plan(spec, gpus=1, precision="bf16"), SD15, gpu).need.optimizer == weights * 2
    spec["training"] = {"deepspeed": {"config": {"steps_per_print": 1}}}
    assert plan_stage(make_plan(spec, gpus=1, precision="bf16"), SD15, gpu).need.total > plain.total


@pytest.mark.parametrize("number_format", ["bf16", "fp16", "fp32"])
def test_deepspeed_does_not_search_bf16_gradients_for_overflow(number_format: str) -> None:
    plan = make_plan(gpus=1, precision=number_format)
    config = deepspeed_config(plan, world_size=2, trainable=10**7, universal=False)
    assert config["bf16"] == {"enabled": number_format == "bf16", "check_grad_overflow": False}
    assert config["fp16"] == {"enabled": number_format == "fp16"}


def test_losses_are_read_after_several_steps_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from dreambooth_trainer.training import records

    monkeypatch.setitem(records.READ_EVERY_STEPS, "cpu", 3)
    done = [StepRecord(1, 9.0, 9.0, 9.0, 9.0, 2)]
    recorder = LossRecorder(done, world_size=1, num_micro_batches=2, has_prior_loss=True)
    for step in range(3):
        assert not recorder.due()
        recorder.add(torch.tensor([6.0, 4.0, 2.0]) + 2 * step, 0.1 * step)
    assert recorder.due()
    assert recorder.records == done
    recorder.read()
    recorder.read()
    assert recorder.records[1:] == [StepRecord(2 + i, 3.0 + i, 2.0 + i, 1.0 + i, 0.1 * i, 1) for i in range(3)]
    assert not recorder.due()


def test_a_worker_imports_what_it_needs() -> None:
    """PEFT takes each process seconds to import, and only adapters need it. A driver needs no diffusers either."""
    program = (
        "import sys, dreambooth_trainer.training.loop; print('diffusers' in sys.modules); "
        "import dreambooth_trainer.training.model; print('peft' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]
