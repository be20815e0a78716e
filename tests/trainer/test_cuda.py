"""CUDA is initialized in worker processes only, and errors name the driver that was found and the one needed."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from test_plan import job_of

from dreambooth_trainer.cluster import hardware
from dreambooth_trainer.cluster.hardware import DeviceError, cuda_device, driver_version
from dreambooth_trainer.phases.evaluate import check_encoders
from dreambooth_trainer.runner import prepare_job

VERSION_LINE = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.54.03  Tue Jun  6 22:20:39 UTC 2023\n"
OPEN_VERSION_LINE = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release Build  (root@host)\n"


@pytest.mark.parametrize(
    ("content", "version"), [(VERSION_LINE, "535.54.03"), (OPEN_VERSION_LINE, "580.95.05"), ("", ""), (None, "")]
)
def test_the_driver_version_is_read_from_the_kernel_module(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str | None, version: str
) -> None:
    monkeypatch.setattr(hardware, "DRIVER_VERSION_FILE", tmp_path / "version")
    if content is not None:
        (tmp_path / "version").write_text(content)
    assert driver_version() == version


@pytest.mark.parametrize(
    ("cuda", "needed"),
    [
        ("12.8", r"needed: driver 525\.60\.13 or later, for PyTorch 2\.13\.0 with CUDA 12\.8\)$"),
        ("13.0", r"needed: driver 580\.65\.06 or later, for PyTorch 2\.13\.0 with CUDA 13\.0\)$"),
        ("15.1", r"needed: a driver for CUDA 15\.1, for PyTorch 2\.13\.0 with CUDA 15\.1\)$"),
        (None, r"PyTorch 2\.13\.0 is a build for CPUs: install one for CUDA\)$"),
    ],
)
def test_an_old_driver_is_reported_with_the_one_needed(
    monkeypatch: pytest.MonkeyPatch, cuda: str | None, needed: str
) -> None:
    def fail() -> None:
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12020).\nMore text")

    monkeypatch.setattr(torch.cuda, "init", fail)
    monkeypatch.setattr(torch, "__version__", "2.13.0")
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(hardware, "driver_version", lambda: "515.43.04")
    with pytest.raises(DeviceError) as caught:
        cuda_device()
    found = r"has a GPU, but CUDA does not work: .* is too old \(found version 12020\)\. \(driver found: 515\.43\.04; "
    assert caught.match(found + needed)


def test_the_driver_process_opens_no_cuda_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everything before the first phase, on a machine with a GPU that a subprocess detects."""
    gpu = {"name": "A100", "memory_bytes": 80 * 2**30, "bf16": True}
    probe = SimpleNamespace(returncode=0, stdout=json.dumps([gpu]), stderr="")
    glob = Path.glob

    def with_gpu(folder: Path, pattern: str) -> object:
        return iter([Path("/dev/nvidia0")]) if folder == Path("/dev") else glob(folder, pattern)

    monkeypatch.setattr(hardware.Path, "glob", with_gpu)
    monkeypatch.setattr(hardware, "driver_version", lambda: "580.95.05")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(hardware.subprocess, "run", lambda *arguments, **options: probe)
    monkeypatch.setattr(torch.cuda, "_lazy_init", lambda: pytest.fail("the driver process initialized CUDA"))
    subject = {"class": "dog", "images": {"uri": "builtin:sprites/dog-pink-blue"}}
    prepared = prepare_job(job_of({"subject": subject}))
    check_encoders(prepared.plan)
    assert prepared.planned.hardware.device == "A100"
    assert (prepared.plan.gpus_per_worker, prepared.plan.precision) == (1, "bf16")
