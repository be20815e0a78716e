"""Hardware is detected on the workers, and missing GPUs or memory end a run with an actionable error."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_api.job import Cluster, Resources
from dreambooth_trainer.cluster import hardware
from dreambooth_trainer.cluster.hardware import Hardware, check_runnable
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.phases.train import build_trainer
from dreambooth_trainer.planning.fit import check_memory, plan_stage, sampling_processes
from dreambooth_trainer.planning.memory import GIB, MemoryNeed, ModelSize, StageChoice, sampling_need
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder

pytestmark = pytest.mark.trainer

# Stable Diffusion 1.5 at 512 px in fp32.
SD15 = ModelSize(
    trainable=860_000_000,
    frozen=0,
    pipeline=4 * 1_066_000_000,
    encoders=4 * 206_000_000,
    loaded=4 * 860_000_000,
    assembled=4 * 1_066_000_000,
    activations=int(3.5 * GIB),
    backward=int(0.5 * GIB),
    sampling=3 * GIB,
    encoding=5 * GIB,
)
LORA = replace(SD15, trainable=15_000_000, frozen=860_000_000)
CPU = Hardware(0, "CPU", 22 * GIB, bf16=False)


def measure(plan: Plan, images: int) -> ModelSize:
    """The size of Stable Diffusion 1.5 for two images per micro-batch."""
    assert images == 2
    size = LORA if plan.spec.training.method == "LoRA" else SD15
    return replace(size, activations=GIB) if plan.spec.training.gradient_checkpointing else size


def run_on_fake_cluster(case: str, *arguments: str) -> dict[str, Any]:
    script = Path(__file__).with_name("fake_cluster.py")
    done = subprocess.run([sys.executable, str(script), case, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    # Ray may print the log of a lost node after the result.
    return json.loads([line for line in done.stdout.splitlines() if line.startswith("{")][-1])


def test_hardware_is_detected_on_a_worker_with_a_gpu() -> None:
    result = run_on_fake_cluster("two_nodes_with_gpus")
    assert "has a GPU, but CUDA does not work: " in result["without CUDA"]
    assert "driver found: none" in result["without CUDA"]
    assert result["gpu 4"] == [4, "A100", 0.92 * 80 * GIB, True]
    assert result["gpu None"] == [1, "A100", 0.92 * 80 * GIB, True]
    assert result["cpu"] == 0
    assert result["pool of 6"] == 6


def test_a_reserved_gpu_without_cuda_does_not_fall_back_to_the_cpu() -> None:
    result = run_on_fake_cluster("broken_gpu")
    assert result["cpu"] == "cpu"
    assert "has a GPU, but CUDA does not work" in result["pool"]
    assert "has a GPU, but CUDA does not work" in result["training"]


def test_an_out_of_memory_kill_is_reported_once_and_not_retried(tmp_path: Path) -> None:
    result = run_on_fake_cluster("out_of_memory", str(tmp_path))
    for activity, key in (("image generation, encoding or scoring", "pool"), ("training", "training")):
        message, attempts = result[key]
        assert f"Ray killed a worker during {activity}: " in message
        assert "B of memory were in use" in message
        assert "spec.cluster.resources.memory" in message
        assert ("training.method: LoRA" in message) == (key == "training")
        assert "RAY_" not in message
        assert attempts == 1


@pytest.mark.parametrize(
    ("cluster", "gpus", "processes", "threads"),
    [
        ({"workers": 1}, 8, 8, 12),
        ({"workers": 8}, 1, 8, 12),
        ({"workers": 2}, 8, 16, 6),
        ({"workers": 2}, 0, 2, 48),
        ({"elastic": {"minWorkers": 1, "maxWorkers": 2}}, 4, (4, 8), 12),
    ],
)
def test_every_gpu_of_a_pod_runs_a_training_process(
    ray_here: None,
    tmp_path: Path,
    cluster: dict,
    gpus: int,
    processes: int | tuple[int, int],
    threads: int,
) -> None:
    plan = make_plan({"cluster": cluster, "training": {"globalBatchSize": 16}}, gpus=gpus)
    trainer = build_trainer(plan, JobFolder(tmp_path), "key", print, cores=96)
    assert trainer.scaling_config.num_workers == processes
    assert trainer.scaling_config.use_gpu == (gpus > 0)
    assert trainer.train_loop_config["loop"].num_threads == threads


def test_a_machine_without_gpus_can_plan_but_not_run_a_job_that_requests_them() -> None:
    cluster = Cluster(workers=2, resources=Resources(gpu=1))
    found = hardware._query_machine(cluster)
    assert (found.gpus_per_worker, found.memory_bytes, found.bf16) == (1, None, True)
    with pytest.raises(UserError, match=r"spec.cluster.resources.gpu: 1: this machine does not have 2 x 1 GPU"):
        check_runnable(found, cluster)


def test_jobs_share_the_memory_of_a_machine_but_not_that_of_a_gpu() -> None:
    further, usable = hardware.FURTHER_JOB_BYTES, hardware.USABLE_SHARE_CPU
    alone = hardware.cpu_hardware(16 * further, 2)
    shared = alone.shared_by(4)
    assert shared.memory_bytes == pytest.approx(usable * (16 - 3) * further / 4 / 2), "less what three more jobs need"
    assert shared.sampling_bytes == pytest.approx(2 * shared.memory_bytes)
    assert hardware.Hardware(0, "CPU", 8.0, bf16=False, total_bytes=24.0).shared_by(4).total_bytes == 6.0
    assert alone.shared_by(1) == alone
    on_gpus = hardware.Hardware(1, "A100", 80.0, bf16=True, host_bytes=64.0).shared_by(4)
    assert (on_gpus.memory_bytes, on_gpus.host_bytes) == (80.0, 16.0)
    on_cluster = hardware.Hardware(1, "cluster GPU", None, bf16=True)
    assert on_cluster.shared_by(4) == on_cluster, "its memory is not known"


def test_workers_share_the_memory_of_a_machine() -> None:
    one, two = (hardware._query_machine(Cluster(workers=workers)).memory_bytes for workers in (1, 2))
    assert one == 2 * two
    assert 0.7 * hardware.machine_memory() < one < 0.95 * hardware.machine_memory()


@pytest.mark.parametrize(
    ("visible", "driver", "note"),
    [
        ("", "driver", "CUDA_VISIBLE_DEVICES is empty"),
        ("-1", "driver", "CUDA_VISIBLE_DEVICES is -1"),
        (None, "", "no NVIDIA driver is loaded"),
    ],
)
def test_a_gpu_that_cannot_be_used_is_noted_and_the_run_uses_the_cpu(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, driver: str, note: str
) -> None:
    monkeypatch.setattr(hardware.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices, message = hardware.local_devices()
    assert devices == []
    assert note in message


def test_a_loaded_driver_without_cuda_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr(hardware, "driver_version", lambda: "NVIDIA 535.54")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(hardware.DeviceError, match="CUDA does not work"):
        hardware.local_devices()


def test_the_stage_is_chosen_for_the_gpu_memory_of_the_workers() -> None:
    plan = make_plan({"model": {"id": "m"}, "training": {"globalBatchSize": 8}}, gpus=8, precision="bf16")
    large = plan_stage(plan, SD15, Hardware(8, "A100", 80 * GIB, bf16=True))
    small = plan_stage(plan, replace(SD15, activations=0), Hardware(8, "T4", 5 * GIB, bf16=True))
    assert (large.stage, large.fits) == (1, True)
    assert (small.stage, small.fits) == (2, True)


def test_a_plan_that_does_not_fit_is_rejected_with_the_numbers(tiny_model: Path) -> None:
    cpu = Hardware(0, "CPU", 12 * GIB, bf16=False)
    plan = make_plan({"model": {"id": str(tiny_model)}, "training": {"resolution": 256}})
    choice = plan_stage(plan, SD15, cpu)
    assert not choice.fits
    with pytest.raises(UserError) as caught:
        check_memory(plan, SD15, choice, cpu, measure)
    message = str(caught.value)
    assert message.startswith("spec.training: Full in fp32 at 256 px needs ")
    assert "per process, 12.0 GiB are available (CPU)" in message
    assert "set training: {method: LoRA} (needs 7.9 GiB), a lower resolution" in message
    small = Hardware(0, "CPU", 6 * GIB, bf16=False)
    with pytest.raises(UserError, match=r"spec.model.id: .*: generating images needs 8.0 GiB, 6.0 GiB are available"):
        check_memory(plan, SD15, choice, small, measure)


def test_sampling_can_use_the_memory_of_all_workers_of_a_machine(
    monkeypatch: pytest.MonkeyPatch, tiny_model: Path
) -> None:
    monkeypatch.setattr(hardware, "machine_memory", lambda: 15 * GIB)
    cluster = Cluster(workers=4)
    found = hardware._query_machine(cluster)
    plan = make_plan({"model": {"id": str(tiny_model)}, "cluster": {"workers": 4}, "training": {"globalBatchSize": 4}})
    need = sampling_need(SD15)
    assert found.memory_bytes is not None
    assert found.memory_bytes < need < 4 * found.memory_bytes
    fitting = StageChoice(1, "", MemoryNeed(0, 0, 0, 0), fits=True)
    check_memory(plan, SD15, fitting, found, measure)
    assert sampling_processes(plan, SD15, found) == 1


@pytest.mark.parametrize(
    ("workers", "gib", "gpus", "processes"),
    [(1, 24, 0, 2), (1, 12, 0, 1), (4, 24, 0, 4), (4, 7, 0, 1), (2, 80, 4, 8)],
)
def test_the_number_of_sampling_processes_is_limited_by_memory(
    workers: int, gib: float, gpus: int, processes: int
) -> None:
    spec = {"model": {"id": "m"}, "cluster": {"workers": workers}, "training": {"globalBatchSize": 8}}
    found = sampling_processes(make_plan(spec, gpus=gpus), SD15, Hardware(gpus, "any", gib * GIB, bf16=gpus > 0))
    assert found == processes


def test_two_sampling_processes_are_not_placed_on_a_machine_that_fits_one() -> None:
    plan = make_plan({"model": {"id": "m"}, "cluster": {"workers": 4}, "training": {"globalBatchSize": 4}})
    two_machines = Hardware(0, "CPU", 7 * GIB, bf16=False, processes_per_machine=2)
    assert sampling_processes(plan, SD15, two_machines) == 2


def test_remedies_that_fit_only_together_are_offered_together(tiny_model: Path) -> None:
    plan = make_plan({"model": {"id": str(tiny_model)}})
    hardware = Hardware(0, "CPU", 9 * GIB, bf16=False)
    large = replace(SD15, activations=8 * GIB, sampling=GIB, encoding=GIB)

    def measure_large(plan: Plan, images: int) -> ModelSize:
        return replace(measure(plan, images), activations=GIB if plan.spec.training.gradient_checkpointing else 8 * GIB)

    with pytest.raises(UserError) as caught:
        check_memory(plan, large, plan_stage(plan, large, hardware), hardware, measure_large)
    remedy = re.search(r"; set (training: {.*}) \(needs 5\.4 GiB\)", str(caught.value))
    assert remedy, caught.value
    # The remedy is YAML that makes the job fit.
    spec = yaml.safe_load(remedy[1])
    assert spec == {"training": {"method": "LoRA", "gradientCheckpointing": True}}
    changed = make_plan({"model": {"id": str(tiny_model)}, **spec})
    size = measure_large(changed, 2)
    check_memory(changed, size, plan_stage(changed, size, hardware), hardware, measure_large)


def failed_allocation() -> BaseException:
    import torch

    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**50)
    return caught.value


@pytest.mark.parametrize(
    ("make_error", "sentence"),
    [
        (failed_allocation, "a worker could not allocate 4194304.00 GiB during training"),
        (MemoryError, "a worker could not allocate memory during training"),
        (lambda: MemoryError("Unable to allocate 9 GiB"), "allocate memory during training: Unable to allocate 9 GiB"),
        (lambda: RuntimeError("a size does not match"), None),
    ],
    ids=["torch on a CPU", "Python", "NumPy", "another error"],
)
def test_a_failed_allocation_on_a_cpu_is_an_out_of_memory_error(
    make_error: Callable[[], BaseException], sentence: str | None
) -> None:
    found = out_of_memory(make_error(), "training")
    assert (found is None) == (sentence is None)
    if sentence is not None:
        assert sentence in str(found)
        assert "training.gradientCheckpointing: true" in str(found)
