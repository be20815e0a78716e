"""Training and image generation on a GPU: `make test-gpu`. Skipped on machines without CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from test_training import data, make_plan

from dreambooth_trainer.cluster.hardware import cuda_device, local_devices
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.engine import open_engine
from dreambooth_trainer.training.loop import run_step

__all__ = ["data"]  # a fixture
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
STEPS = 4
DEVICE = "cuda"


def train(model: Path, data: Path, device: str, precision: str = "fp32", **training: Any) -> list[float]:
    """Losses of some steps on one device, from the same weights, noise and timesteps on each."""
    gpus = int(device == DEVICE)
    plan = make_plan(model, precision=precision, **training).model_copy(update={"gpus_per_worker": gpus})
    torch.manual_seed(0)
    engine, cached = open_engine(plan, 1, None), load_data(data, device)
    return torch.stack([run_step(engine, plan, cached, step, 0, 1)[0] for step in range(STEPS)]).tolist()


def test_losses_in_fp32_are_the_same_on_the_cpu_and_the_gpu(tiny_model: Path, data: Path) -> None:
    expected, found = (train(tiny_model, data, device) for device in ("cpu", DEVICE))
    assert found == pytest.approx(expected, rel=1e-2), "TF32 rounds the products of a GPU"


@pytest.mark.parametrize("method", ["Full", "LoRA"])
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_losses_in_16_bits_are_close_to_those_in_fp32(
    tiny_model: Path, data: Path, precision: str, method: str
) -> None:
    expected, found = (train(tiny_model, data, DEVICE, name, method=method) for name in ("fp32", precision))
    assert found == pytest.approx(expected, rel=5e-2)


def test_an_8_bit_optimizer_trains_like_adamw(tiny_model: Path, data: Path) -> None:
    pytest.importorskip("bitsandbytes")
    expected, found = (
        train(tiny_model, data, DEVICE, "bf16", optimizer=optimizer) for optimizer in ("AdamW", "AdamW8bit")
    )
    assert found == pytest.approx(expected, rel=5e-2)


def test_a_compiled_denoiser_trains_like_the_original(
    tiny_model: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = train(tiny_model, data, DEVICE)
    monkeypatch.setattr(Plan, "compiled", True)
    assert train(tiny_model, data, DEVICE) == pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_checkpoint_of_a_gpu_continues_where_it_was_saved(
    tiny_model: Path, data: Path, tmp_path: Path, precision: str
) -> None:
    plan = make_plan(tiny_model, precision=precision).model_copy(update={"gpus_per_worker": 1})
    cached = load_data(data, DEVICE)
    torch.manual_seed(0)
    engine = open_engine(plan, 1, None)
    for step in range(2):
        run_step(engine, plan, cached, step, 0, 1)
    engine.save(tmp_path)
    resumed = open_engine(plan, 1, tmp_path)
    expected, found = (run_step(one, plan, cached, 2, 0, 1).tolist() for one in (engine, resumed))
    assert found == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
def test_class_images_do_not_depend_on_the_batch(precision: str) -> None:
    pipeline = load_pipeline(WEIGHTS, precision, DEVICE)
    config = SamplingConfig(SamplerSettings(steps=4, guidance_scale=1.5), 32, precision, batch_size=2)
    requests = [ImageRequest(str(seed), "a dog", seed) for seed in range(2)]
    together = sample_batch(pipeline, config, requests)
    alone = [sample_batch(pipeline, config, [request])[0] for request in requests]
    for first, second in zip(together, alone, strict=True):
        pixels = [torch.tensor(list(image.tobytes()), dtype=torch.float) for image in (first, second)]
        assert (pixels[0] - pixels[1]).abs().mean() < 4, "of 255"


DRIVER = """
import torch
from test_plan import job_of
from dreambooth_trainer.runner import prepare_job
subject = {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}}
prepared = prepare_job(job_of({"subject": subject}))
assert prepared.plan.gpus_per_worker == 1
assert not torch.cuda.is_initialized()
"""


def test_the_driver_process_opens_no_cuda_context() -> None:
    # A process of its own, because other tests have initialized CUDA in this one.
    subprocess.run([sys.executable, "-c", DRIVER], check=True, timeout=300, cwd=Path(__file__).parent)


def test_the_gpu_is_detected_in_a_subprocess() -> None:
    devices, note = local_devices()
    assert note == ""
    assert devices[0] == cuda_device()
