"""Host memory of a worker with several GPUs, whose processes load the model at the same time."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from test_memory_count import TEXT, UNET, write_model
from test_plan import STABLE_DIFFUSION, job_of, make_plan
from test_topologies import CONFIG_MAP, runtime_of

from dreambooth_api.errors import UserError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.hardware import SHARED_NODE_BYTES
from dreambooth_trainer.planning.describe import rows
from dreambooth_trainer.planning.host_memory import host_bytes
from dreambooth_trainer.planning.memory import GIB, RUNTIME_BYTES
from dreambooth_trainer.runner import plan_for_runtime

SIZE = replace(STABLE_DIFFUSION, trainable=GIB, frozen=0, total=GIB + GIB // 4, encoders=GIB // 4)


@pytest.fixture
def no_tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """For models of configuration files only."""
    monkeypatch.setattr("dreambooth_trainer.runner.check_use", lambda plan, folder: [])


def of(training: dict[str, Any], gpus: int, workers: int = 1, size: Any = SIZE, precision: str = "bf16") -> float:
    """GiB of the phase Train, without the runtime of the processes."""
    spec = {"training": {"globalBatchSize": 16, **training}, "cluster": {"workers": workers}}
    plan = make_plan(spec, gpus=gpus, precision=precision)
    phases = host_bytes(size, plan, processes=gpus)
    return (phases[TrainerPhase.TRAIN] - SHARED_NODE_BYTES - gpus * RUNTIME_BYTES) / GIB


def test_a_single_process_loads_the_weights_in_fp32() -> None:
    # Assembling the published model needs more.
    assert of({}, gpus=1) == 5
    assert of({}, gpus=1, size=replace(SIZE, total=GIB)) == 4


def test_every_process_of_a_worker_holds_fp32_weights_and_their_cast_for_deepspeed() -> None:
    assert of({}, gpus=8) == 8 * 6
    assert of({}, gpus=1, workers=2) == 6
    assert of({}, gpus=8, precision="fp32") == 8 * 4
    lora = replace(SIZE, trainable=GIB // 8, frozen=GIB)
    assert of({"method": "LoRA"}, gpus=8, size=lora) == 8 * (4 + 6 / 8)


def test_an_optimizer_on_the_host_adds_its_partition_of_each_process() -> None:
    # Weights are on the GPU when the optimizer's state is allocated. Assembly needs 5 GiB.
    assert of({"deepspeed": {"offloadOptimizer": True}}, gpus=8) == 8 * 6
    assert of({"deepspeed": {"offloadOptimizer": True}}, gpus=1) == 4 + 12


def test_other_phases_load_the_pipeline_and_the_encoders() -> None:
    plan = make_plan({"training": {"globalBatchSize": 16}}, gpus=8, precision="bf16")
    phases = host_bytes(SIZE, plan, processes=8)
    shared = SHARED_NODE_BYTES + 8 * RUNTIME_BYTES
    assert phases[TrainerPhase.CLASS_IMAGES] == phases[TrainerPhase.EVALUATE] == shared + 8 * 2 * SIZE.total
    assert phases[TrainerPhase.ENCODE] == shared + 8 * 4 * SIZE.encoders


@pytest.mark.trainer
@pytest.mark.parametrize("training", [{}, {"method": "LoRA", "textEncoder": {"train": True}}], ids=str)
def test_the_weights_that_a_process_loads_are_those_that_were_counted(
    tiny_model: Path, training: dict[str, Any]
) -> None:
    from dreambooth_trainer.training.memory_count import count_size
    from dreambooth_trainer.training.model import build_module

    plan = make_plan({"model": {"id": str(tiny_model)}, "training": {"resolution": 64, **training}})
    size = count_size(plan, tiny_model, 2, encoding_batch=1)
    loaded = sum(parameter.nbytes for parameter in build_module(plan).parameters())
    assert loaded == 4 * (size.trainable + size.frozen)


@pytest.mark.trainer
def test_pods_with_too_little_memory_for_their_gpus_are_rejected_with_numbers(
    tmp_path: Path, no_tokenizer: None
) -> None:
    (tmp_path / "scheduler").mkdir()
    (tmp_path / "scheduler" / "scheduler_config.json").write_text("{}")
    model = write_model(tmp_path, UNET, TEXT)
    job = job_of({**CONFIG_MAP, "model": {"id": str(model)}, "training": {"globalBatchSize": 8, "resolution": 512}})
    # 1.25 GiB shared, 8 x 1 GiB, and 8 x 6 bytes for each of 859,520,964 weights.
    sentence = (
        r"spec\.cluster\.resources\.memory: Train needs 47\.7 GiB of memory in each worker with 8 GPUs, 16\.0 "
        r"GiB are available; set 48Gi, or increase pods\.worker\.memory in the runtime, or use fewer GPUs per worker"
    )
    with pytest.raises(UserError, match=sentence):
        plan_for_runtime(job, runtime_of(8, memory="16Gi"))
    planned, _ = plan_for_runtime(job, runtime_of(8, memory="48Gi"))
    shown = dict(rows(planned))["memory per worker"]
    assert shown == "ClassImages 25.1, Encode 15.4, Train 47.7, Evaluate 25.1 of 48.0 GiB"
