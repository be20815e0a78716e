"""`dreambooth plan --runtime`: plans for clusters, from the description of their hardware."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner
from imagefiles import encoded, gradient, noise
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_api.fields import quantity_value
from dreambooth_api.runtime import RuntimeSpec
from dreambooth_trainer import runner
from dreambooth_trainer.cli.plan import plan
from dreambooth_trainer.cluster.dispatch import PoolSize
from dreambooth_trainer.jobfile.runtimefile import load_runtime
from dreambooth_trainer.planning.memory import GIB
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.runner import plan_for_runtime
from dreambooth_trainer.sampling.generate import generate_images
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig

A100 = {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB"}
CONFIG_MAP = {"subject": {"class": "dog", "images": {"configMap": {"name": "photos"}}}}


@pytest.fixture(autouse=True)
def no_local_hardware(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine that plans is not asked for its hardware: it has no GPU, like a head pod."""
    monkeypatch.setattr(runner, "query_workers", lambda cluster: pytest.fail("local hardware was queried"))


def runtime_of(gpu: int = 1, selector: dict[str, str] | None = None, **worker: Any) -> RuntimeSpec:
    pods = {"worker": {"gpu": gpu, **worker}, "nodeSelector": A100 if selector is None else selector}
    return RuntimeSpec.model_validate({"image": "trainer:1", "pods": pods})


class CountingPool:
    """A pool that records the size of each batch and generates nothing."""

    def __init__(self, processes: int) -> None:
        self.processes, self.sizes = processes, list[int]()

    def size(self) -> PoolSize:
        return PoolSize(self.processes, threads=1)

    def map(self, function: Any, calls: Any, **options: Any) -> list[int]:
        self.sizes = [len(requests) for _, _, _, requests, _ in calls]
        return self.sizes


class CompleteStore:
    """A store that contains all images once it was asked for their names."""

    url = "memory://store"

    def __init__(self, names: set[str]) -> None:
        self._answers = iter([set[str](), names])

    def names(self) -> set[str]:
        return next(self._answers)


def batches_of(processes: int, count: int, batch_size: int) -> list[int]:
    requests = [ImageRequest(str(index), "a dog", index) for index in range(count)]
    pool: Any = CountingPool(processes)
    store: Any = CompleteStore({request.name for request in requests})
    config = SamplingConfig(SamplerSettings(steps=1, guidance_scale=1.0), 32, "fp32", batch_size)
    generate_images(pool, None, config, store, requests)  # pyright: ignore[reportArgumentType] - no model is loaded
    return pool.sizes


@pytest.mark.parametrize(
    ("workers", "gpus", "world_size"), [(1, 8, 8), (8, 1, 8), (2, 8, 16), (1, 1, 1)], ids=["1x8", "8x1", "2x8", "1x1"]
)
def test_every_gpu_of_the_cluster_trains_and_generates(workers: int, gpus: int, world_size: int) -> None:
    job = job_of({**CONFIG_MAP, "cluster": {"workers": workers}, "training": {"globalBatchSize": 32}})
    planned, warnings = plan_for_runtime(job, runtime_of(gpus))
    assert planned.plan.world_sizes == (world_size, world_size)
    assert planned.plan.batch_size == 32
    assert (planned.plan.precision, planned.plan.zero_stage) == ("bf16", 1)
    assert planned.sampling_processes == world_size
    assert planned.hardware.device == A100["nvidia.com/gpu.product"]
    assert warnings == ("the images are in the cluster: the plan assumes 5 images.",)
    count = planned.plan.num_class_images
    sizes = batches_of(planned.sampling_processes, count, planned.plan.sampling_batch_size)
    assert sum(sizes) == count
    assert len(sizes) >= world_size, "every process gets a batch"


@pytest.mark.parametrize(("workers", "gpus"), [(1, 8), (8, 1)])
def test_the_default_batch_is_not_multiplied_by_the_cluster(workers: int, gpus: int) -> None:
    with pytest.raises(UserError, match=r"globalBatchSize: 4: the default cannot be split .*globalBatchSize: 8"):
        plan_for_runtime(job_of({**CONFIG_MAP, "cluster": {"workers": workers}}), runtime_of(gpus))


@pytest.mark.parametrize(
    ("selector", "worker", "device", "memory", "bf16", "note"),
    [
        (A100, {}, "NVIDIA-A100-SXM4-80GB", 79 * GIB, True, ""),
        ({"nvidia.com/gpu.product": "Tesla-T4"}, {}, "Tesla-T4", 14 * GIB, False, ""),
        (A100, {"gpuMemory": "40Gi"}, "NVIDIA-A100-SXM4-80GB", 40 * GIB, True, ""),
        ({}, {"gpuMemory": "24G"}, "GPU", 24e9, True, "support for bf16 is assumed."),
        ({"nvidia.com/gpu.memory": "40960"}, {}, "GPU", 40 * GIB, True, "support for bf16 is assumed."),
        ({}, {}, "GPU", None, True, "memory is not checked; set pods.worker.gpuMemory in the runtime."),
        (
            {"nvidia.com/gpu.product": "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb"},
            {},
            "NVIDIA-A100-SXM4-80GB-MIG-1g.10gb",
            None,
            True,
            "GPU 'NVIDIA-A100-SXM4-80GB-MIG-1g.10gb' is not known",
        ),
    ],
    ids=["product", "no bf16", "field wins", "field only", "memory label", "unknown", "a part of a GPU"],
)
def test_gpu_facts_come_from_the_runtime(
    selector: dict[str, str], worker: dict[str, str], device: str, memory: float | None, bf16: bool, note: str
) -> None:
    planned, warnings = plan_for_runtime(job_of(CONFIG_MAP), runtime_of(1, selector, **worker))
    found = planned.hardware
    assert (found.gpus_per_worker, found.device, found.bf16) == (1, device, bf16)
    assert found.memory_bytes == (None if memory is None else 0.92 * memory)
    assert planned.plan.precision == ("bf16" if bf16 else "fp16")
    assert note in warnings[0]


def test_a_runtime_without_gpus_is_planned_with_the_memory_of_its_pods() -> None:
    job = job_of({**CONFIG_MAP, "cluster": {"workers": 2, "resources": {"memory": "9.25Gi"}}})
    planned, _ = plan_for_runtime(job, runtime_of(0, {}, memory="3Gi"))
    assert planned.hardware.gpus_per_worker == 0
    assert planned.hardware.memory_bytes == pytest.approx(0.95 * 8 * GIB)
    assert (planned.plan.precision, planned.plan.world_sizes) == ("fp32", (2, 2))


def test_defaults_of_the_runtime_are_applied_and_values_of_the_job_win() -> None:
    runtime = runtime_of(1).model_copy(
        update={"defaults": RuntimeSpec.model_validate({"image": "i", "defaults": {"steps": 70}}).defaults}
    )
    assert plan_for_runtime(job_of(CONFIG_MAP), runtime)[0].plan.steps == 70
    assert plan_for_runtime(job_of({**CONFIG_MAP, "training": {"steps": 7}}), runtime)[0].plan.steps == 7
    own = {**CONFIG_MAP, "cluster": {"resources": {"gpu": 2}}}
    assert plan_for_runtime(job_of(own), runtime)[0].plan.gpus_per_worker == 2


def write_yaml(path: Path, value: object) -> Path:
    path.write_text(yaml.safe_dump(value))
    return path


def test_the_command_prints_the_plan_of_a_cluster(tmp_path: Path) -> None:
    job = job_of({**CONFIG_MAP, "cluster": {"workers": 2}, "training": {"globalBatchSize": 16}})
    job_file = write_yaml(tmp_path / "job.yaml", job.model_dump(mode="json", by_alias=True, exclude_defaults=True))
    runtime = {
        "apiVersion": "dreambooth.dev/v1alpha1",
        "kind": "DreamBoothRuntime",
        "metadata": {"name": "gpus"},
        "spec": {"image": "i", "pods": {"worker": {"gpu": 8}, "nodeSelector": A100}},
    }
    runtime_file = write_yaml(tmp_path / "runtime.yaml", runtime)
    result = CliRunner().invoke(plan, [str(job_file), "--runtime", str(runtime_file)], env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    for text in ("8 x NVIDIA-A100-SXM4-80GB, world size 16", "batch size 16", "bf16", "16 process(es)", "GiB"):
        assert text in result.output


PARENT = "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothRuntime\nmetadata: {name: gpus}\nspec: {image: i}\n---\n"
LOCAL = "apiVersion: dreambooth.dev/v1alpha1\nkind: LocalDreamBoothRuntime\nmetadata: {name: own}\nspec: "


def test_a_local_runtime_is_planned_with_its_parent(tmp_path: Path) -> None:
    own = "{parent: gpus, pods: {worker: {gpu: 2}}, defaults: {steps: 70}}"
    job_file = write_yaml(
        tmp_path / "job.yaml", job_of(CONFIG_MAP).model_dump(mode="json", by_alias=True, exclude_defaults=True)
    )
    (tmp_path / "runtime.yaml").write_text(PARENT + LOCAL + own)
    arguments = [str(job_file), "--runtime", str(tmp_path / "runtime.yaml")]
    result = CliRunner().invoke(plan, arguments, env={"COLUMNS": "160"})
    assert result.exit_code == 0, result.output
    assert "2 x GPU" in result.output
    assert "70" in result.output


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (LOCAL + "{parent: gpus}", "runtime.yaml: contains 0 DreamBoothRuntimes; pass a file with one"),
        (
            PARENT + LOCAL + "{parent: cpus}",
            "spec.parent (runtime.yaml): 'cpus': is not the DreamBoothRuntime of the file, 'gpus'; add the parent to",
        ),
        (
            PARENT.replace("image", "imag") + LOCAL + "{parent: gpus, bounds: {}}",
            "spec.bounds (runtime.yaml, line 9): is not a known key",
        ),
        (PARENT.replace("image", "imag") + LOCAL + "{parent: gpus, bounds: {}}", "spec.imag (runtime.yaml, line 4)"),
        ("kind: DreamBoothJob", "runtime.yaml: contains 0 DreamBoothRuntimes; pass a file with one"),
        (
            "apiVersion: dreambooth.dev/v1alpha1\nkind: DreamBoothRuntime\nmetadata: {name: a}\nspec: {imag: i}",
            "spec.imag (runtime.yaml, line 4): is not a known key; did you mean image?",
        ),
    ],
)
def test_errors_of_a_runtime_file_name_the_file(tmp_path: Path, text: str, sentence: str) -> None:
    (tmp_path / "runtime.yaml").write_text(text)
    with pytest.raises(UserError) as caught:
        load_runtime(tmp_path / "runtime.yaml")
    assert sentence in str(caught.value)


@pytest.mark.parametrize(
    ("quantity", "value"),
    [("8", 8), ("500m", 0.5), ("1.5Gi", 1.5 * GIB), ("2k", 2000), ("3M", 3e6), ("1Ki", 1024), ("1Ti", 2**40)],
)
def test_quantities_are_read_as_kubernetes_reads_them(quantity: str, value: float) -> None:
    assert quantity_value(quantity) == value


def test_photos_on_this_machine_are_decoded_in_a_plan_for_a_cluster(tmp_path: Path) -> None:
    for seed in range(3):
        (tmp_path / f"{seed}.png").write_bytes(encoded(noise(seed=seed)))
    (tmp_path / "3.png").write_bytes(encoded(gradient(64, 64)))
    job = job_of({"subject": {"images": {"uri": str(tmp_path)}, "class": "dog"}})
    _, warnings = plan_for_runtime(job, runtime_of(0, {}))
    assert any(line.startswith("3.png (") for line in warnings), warnings
    (tmp_path / "clip.mov").write_bytes(b"\x00\x00\x00\x14ftypqt  \x00\x00\x00\x00qt  ")
    with pytest.raises(UserError, match=r"^clip.mov: is a video"):
        plan_for_runtime(job, runtime_of(0, {}))
