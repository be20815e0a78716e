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

SIZE = replace(
    STABLE_DIFFUSION,
    trainable=GIB,
    frozen=0,
    loaded=4 * GIB,
    assembled=5 * GIB,
    encoders=GIB,
    pipeline=5 * GIB // 2,
)


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
    assert of({}, gpus=1, size=replace(SIZE, assembled=GIB)) == 4


def test_every_process_of_a_worker_holds_fp32_weights_and_their_cast_for_deepspeed() -> None:
    assert of({}, gpus=8) == 8 * 6
    assert of({}, gpus=1, workers=2) == 6
    assert of({}, gpus=8, precision="fp32") == 8 * 4
    lora = replace(SIZE, trainable=GIB // 8, frozen=GIB, loaded=4 * (GIB // 8 + GIB))
    assert of({"method": "LoRA"}, gpus=8, size=lora) == 8 * (4 + 6 / 8)


def test_an_optimizer_on_the_host_adds_its_partition_of_each_process() -> None:
    # Weights are on the GPU when the optimizer's state is allocated. Assembly needs 5 GiB.
    assert of({"deepspeed": {"offloadOptimizer": True}}, gpus=8) == 8 * 6
    assert of({"deepspeed": {"offloadOptimizer": True}}, gpus=1) == 4 + 12


def test_other_phases_load_the_pipeline_and_the_encoders() -> None:
    plan = make_plan({"training": {"globalBatchSize": 16}}, gpus=8, precision="bf16")
    phases = host_bytes(SIZE, plan, processes=8)
    shared = SHARED_NODE_BYTES + 8 * RUNTIME_BYTES
    assert phases[TrainerPhase.CLASS_IMAGES] == phases[TrainerPhase.EVALUATE] == shared + 8 * SIZE.pipeline
    assert phases[TrainerPhase.ENCODE] == shared + 8 * SIZE.encoders


STORED = [
    *(("tiny_xl_model", "fp32"), ("tiny_flux_model", "fp32"), ("tiny_sd3_model", "bf16")),
    *(("tiny_flux_model", "bf16"), ("tiny_z_image_model", "bf16")),
]


@pytest.mark.trainer
@pytest.mark.parametrize(("name", "stored"), STORED)
def test_the_weights_that_processes_load_are_those_that_were_counted(
    request: pytest.FixtureRequest, tmp_path: Path, name: str, stored: str
) -> None:
    """Large frozen modules that are stored in bf16 are loaded in bf16."""
    import torch
    from diffusers import DiffusionPipeline

    from dreambooth_trainer.families.registry import open_family
    from dreambooth_trainer.training.memory_count import DTYPES, count_size
    from dreambooth_trainer.training.model import build_module

    folder: Path = request.getfixturevalue(name)
    if stored == "bf16":
        DiffusionPipeline.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(tmp_path)
        folder = tmp_path
    family = open_family(folder)
    encoders = family.open(folder, [*family.text_encoders, *family.image_encoders]).modules
    for method, precision, gpus in (("Full", "fp32", 0), ("LoRA", "bf16", 1)):
        spec = {"model": {"id": str(folder)}, "training": {"resolution": 32, "method": method}}
        plan = make_plan(spec, gpus=gpus, precision=precision)
        size = count_size(plan, folder, 2, encoding_batch=1)
        pipeline = family.pipeline(folder, DTYPES[precision])
        parts = {key: part for key, part in pipeline.components.items() if isinstance(part, torch.nn.Module)}
        assert size.pipeline == sum(map(weight_bytes, parts.values()))
        assert size.encoders == sum(map(weight_bytes, encoders.values()))
        module = build_module(plan)
        assert size.loaded == weight_bytes(module)
        trained = module.trained.keys()
        others = [part for key, part in encoders.items() if key not in trained]
        assert size.assembled == weight_bytes(module) + sum(map(weight_bytes, others))


def weight_bytes(module: Any) -> int:
    return sum(parameter.nbytes for parameter in module.parameters())


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
    shown = dict(rows(planned))["memory per worker"]  # images are generated with the autoencoder in fp32
    assert shown == "ClassImages 26.4, Encode 15.4, Train 47.7, Evaluate 26.4 of 48.0 GiB", (
        "with the autoencoder in fp32"
    )
