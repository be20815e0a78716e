"""Decisions about hardware come from the workers' hardware, and a lack of it ends a run with a sentence."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_plan import make_plan

from dreambooth_api.errors import UserError
from dreambooth_api.job import Cluster, Resources
from dreambooth_trainer.cluster import hardware
from dreambooth_trainer.cluster.hardware import Hardware, check_runnable
from dreambooth_trainer.phases.train import build_trainer
from dreambooth_trainer.planning.fit import check_memory, plan_stage, sampling_processes
from dreambooth_trainer.planning.memory import GIB, ModelSize
from dreambooth_trainer.store.folder import JobFolder

pytestmark = pytest.mark.trainer

SD15 = ModelSize(trainable=860_000_000, frozen=0, whole=1_066_000_000, latent_side=64, width=320)
CPU = Hardware(0, "CPU", 24 * GIB, bf16=False)


def on_fake_cluster(case: str, *arguments: str) -> dict[str, Any]:
    script = Path(__file__).with_name("fake_cluster.py")
    done = subprocess.run([sys.executable, str(script), case, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def test_a_worker_with_a_gpu_answers_not_the_head() -> None:
    answer = on_fake_cluster("two_nodes_with_gpus")
    assert "CUDA does not work there" in answer["without CUDA"]
    assert "driver: none" in answer["without CUDA"]
    assert answer["gpu 4"] == [4, "A100", 0.92 * 80 * GIB, True]
    assert answer["gpu None"] == [1, "A100", 0.92 * 80 * GIB, True]
    assert answer["cpu"] == 0
    assert answer["pool of 6"] == 6


def test_a_reserved_gpu_without_cuda_is_never_a_run_on_the_cpu() -> None:
    answer = on_fake_cluster("broken_gpu")
    assert answer["cpu"] == "cpu"
    assert "a GPU is reserved on" in answer["pool"]
    assert "a GPU is reserved on" in answer["training"]


def test_a_kill_for_lack_of_memory_is_one_sentence_and_is_not_retried(tmp_path: Path) -> None:
    answer = on_fake_cluster("out_of_memory", str(tmp_path))
    for activity, place in (("generating, encoding or scoring images", "pool"), ("training", "training")):
        sentence, tries = answer[place]
        assert f"Ray killed a worker that was {activity}: " in sentence
        assert "GB were in use" in sentence or "on its machine were in use" in sentence
        assert "training.method: LoRA" in sentence
        assert "RAY_" not in sentence
        assert tries == 1


@pytest.mark.parametrize(
    ("cluster", "gpus", "processes"),
    [
        ({"workers": 1}, 8, 8),
        ({"workers": 8}, 1, 8),
        ({"workers": 2}, 8, 16),
        ({"workers": 2}, 0, 2),
        ({"elastic": {"minWorkers": 1, "maxWorkers": 2}}, 4, (4, 8)),
    ],
)
def test_every_gpu_of_a_pod_trains(
    ray_here: None, tmp_path: Path, cluster: dict, gpus: int, processes: int | tuple[int, int]
) -> None:
    plan = make_plan({"cluster": cluster, "training": {"globalBatchSize": 16}}, gpus=gpus)
    scaling = build_trainer(plan, JobFolder(tmp_path), "key", print).scaling_config
    assert scaling.num_workers == processes
    assert scaling.use_gpu == (gpus > 0)


def test_a_machine_without_gpus_plans_for_those_that_a_job_asks_for_and_does_not_run_it() -> None:
    cluster = Cluster(workers=2, resources=Resources(gpu=1))
    found = hardware._ask_machine(cluster)
    assert (found.gpus_per_worker, found.memory_bytes, found.bf16) == (1, None, True)
    with pytest.raises(UserError, match=r"spec.cluster.resources.gpu: 1: this machine does not have 2 x 1 GPU"):
        check_runnable(found, cluster)


def test_memory_of_a_machine_is_shared_by_its_workers() -> None:
    one, two = (hardware._ask_machine(Cluster(workers=workers)).memory_bytes for workers in (1, 2))
    assert one == 2 * two
    assert 0.7 * hardware.machine_memory() < one < 0.95 * hardware.machine_memory()


@pytest.mark.parametrize(
    ("visible", "driver", "note"),
    [("", "driver", "CUDA_VISIBLE_DEVICES is empty"), (None, "", "no NVIDIA driver")],
)
def test_a_device_file_alone_is_a_run_on_the_cpu_and_said_so(
    monkeypatch: pytest.MonkeyPatch, visible: str | None, driver: str, note: str
) -> None:
    monkeypatch.setattr(hardware.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr(hardware, "driver_version", lambda: driver)
    if visible is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    devices, said = hardware.local_devices()
    assert devices == []
    assert note in said


def test_a_loaded_driver_without_cuda_is_an_error_not_a_run_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hardware.Path, "glob", lambda self, pattern: iter([Path("/dev/nvidia0")]))
    monkeypatch.setattr(hardware, "driver_version", lambda: "NVIDIA 535.54")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    with pytest.raises(hardware.DeviceError, match="CUDA does not work"):
        hardware.local_devices()


def test_the_stage_is_that_of_the_workers_gpu() -> None:
    plan = make_plan({"model": {"id": "m"}, "training": {"globalBatchSize": 8}}, gpus=8, precision="bf16")
    large = plan_stage(plan, SD15, Hardware(8, "A100", 80 * GIB, bf16=True))
    small = plan_stage(plan, SD15, Hardware(8, "T4", 7 * GIB, bf16=True))
    assert (large.stage, large.fits) == (1, True)
    assert (small.stage, small.fits) == (2, True)


def test_what_does_not_fit_is_refused_with_numbers(tmp_path: Path, tiny_model: Path) -> None:
    plan = make_plan({"model": {"id": str(tiny_model)}, "training": {"resolution": 256}})
    choice = plan_stage(plan, SD15, CPU)
    assert not choice.fits
    with pytest.raises(UserError) as caught:
        check_memory(plan, tiny_model, SD15, choice, CPU)
    sentence = str(caught.value)
    assert sentence.startswith("spec.training: Full in fp32 at 256 px with ZeRO-1 needs ")
    assert "24.0 GiB are available per process (CPU)" in sentence
    assert "write method: LoRA (needs 1." in sentence
    tight = Hardware(0, "CPU", 6 * GIB, bf16=False)
    with pytest.raises(UserError, match=r"spec.model.id: .*generating images with it needs"):
        check_memory(plan, tiny_model, SD15, choice, tight)


@pytest.mark.parametrize(
    ("workers", "gib", "gpus", "processes"), [(1, 24, 0, 2), (1, 12, 0, 1), (4, 24, 0, 4), (2, 80, 4, 8)]
)
def test_images_are_generated_by_as_many_processes_as_have_the_memory(
    workers: int, gib: int, gpus: int, processes: int
) -> None:
    spec = {"model": {"id": "m"}, "cluster": {"workers": workers}, "training": {"globalBatchSize": 8}}
    found = sampling_processes(make_plan(spec, gpus=gpus), SD15, Hardware(gpus, "any", gib * GIB, bf16=gpus > 0))
    assert found == processes
