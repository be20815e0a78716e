"""Training and image generation on a GPU: `make test-gpu`. Skipped on machines without CUDA."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from test_training import data, make_plan

from dreambooth_trainer.cluster.hardware import cuda_device, local_devices
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.sampling.pipeline import ImageRequest, SamplingConfig, load_pipeline, sample_batch
from dreambooth_trainer.sprites import WEIGHTS
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import load_data
from dreambooth_trainer.training.loop import build_module, optimizer_groups
from dreambooth_trainer.training.module import make_batch, to_device

__all__ = ["data"]  # a fixture
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")]
STEPS = 4
DEVICE = "cuda"


def train(model: Path, data: Path, device: str, precision: str = "fp32") -> list[float]:
    """Losses of AdamW steps on one device, from the same weights, noise and timesteps on each."""
    plan, cached = make_plan(model), load_data(data)
    assert cached.class_images is not None
    torch.manual_seed(0)
    module, _ = build_module(plan)
    module.to(device)
    optimizer = torch.optim.AdamW(optimizer_groups(plan, module))
    samplers = tuple(
        DeterministicSampler(len(kind), plan.batch_size, 1000, seed)
        for seed, kind in enumerate((cached.instance_images, cached.class_images))
    )
    losses: list[float] = []
    for step in range(STEPS):
        batch = to_device(make_batch(cached, (samplers[0], samplers[1]), step, 0, 1), torch.device(device))
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            loss = module(batch)[0]
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses


def test_losses_in_fp32_are_the_same_on_the_cpu_and_the_gpu(tiny_model: Path, data: Path) -> None:
    expected, found = (train(tiny_model, data, device) for device in ("cpu", DEVICE))
    assert found == pytest.approx(expected, rel=1e-3)


def test_losses_in_bf16_are_close_to_those_in_fp32(tiny_model: Path, data: Path) -> None:
    expected, found = (train(tiny_model, data, DEVICE, precision) for precision in ("fp32", "bf16"))
    assert found == pytest.approx(expected, rel=5e-2)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
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
