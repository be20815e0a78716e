"""Benchmarks start, and the one for GPUs runs as a whole, on the CPU with a tiny model."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from dreambooth_api.status import TrainerPhase

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench"
# The other files are imported by a benchmark, or run by it in another environment.
COMMANDS = sorted(p for p in BENCH.glob("*.py") if re.search(r"click\.command|ArgumentParser", p.read_text()))
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([*sys.path, str(ROOT / "tests" / "cluster")])}


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The module of `bench/gpu.py`."""
    monkeypatch.syspath_prepend(BENCH)
    import gpu

    return gpu


def test_every_benchmark_starts_and_names_its_command() -> None:
    started = {
        path: subprocess.Popen(
            [sys.executable, path, "--help"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=ENVIRONMENT
        )
        for path in COMMANDS
    }
    for path, process in started.items():
        output, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors
        assert f"python bench/{path.name}" in path.read_text().partition("import")[0], f"{path.name}: no command"
        assert "--help" in output


def test_every_listed_benchmark_exists() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text()
    listed = re.findall(r"^\| .* \| `(?:PYTHONPATH=\S+ )?python (bench/\w+\.py)", text, re.MULTILINE)
    assert listed
    assert [name for name in listed if not (ROOT / name).exists()] == []


def test_without_a_gpu_it_refuses_with_one_sentence(bench: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for found, sentence in (
        (([], ""), "bench/gpu.py needs a GPU: this machine has none."),
        (([], "No driver: this run uses the CPU."), "bench/gpu.py needs a GPU: No driver: this run uses the CPU."),
    ):
        monkeypatch.setattr(bench, "local_devices", lambda found=found: found)
        with pytest.raises(SystemExit) as caught:
            bench.check_device("cuda")
        assert caught.value.code == sentence
    bench.check_device("cpu")


@pytest.mark.parametrize(
    ("steps", "expected"),
    [([], None), ([(10.0, 5)], None), ([(10.0, 5), (12.0, 25)], 10.0), ([(10.0, 5), (11.0, 9), (12.0, 25)], 10.0)],
)
def test_the_rate_is_that_between_the_first_and_the_last_report(
    bench: Any, steps: list[tuple[float, int]], expected: float | None
) -> None:
    assert bench.steps_per_second(steps) == expected


def test_peaks_are_those_of_one_process_within_a_phase(bench: Any, tmp_path: Path) -> None:
    samples = {"1": [(1, None, 10), (2, 7, 20), (9, 99, 99)], "2": [(2, 5, 30)]}
    for pid, lines in samples.items():
        text = "".join(json.dumps({"time": at, "gpu": gpu, "resident": rss}) + "\n" for at, gpu, rss in lines)
        (tmp_path / f"{pid}.jsonl").write_text(text + '{"time": 2, "gp')
    assert bench.read_peak(tmp_path, 0, 3) == bench.Peak(gpu=7, resident=30)
    assert bench.read_peak(tmp_path, 4, 5) == bench.Peak(gpu=None, resident=None)


def test_device_memory_is_sampled_with_nvidia_smi(bench: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    samples: list[tuple[float, int]] = []
    monkeypatch.setenv("PATH", str(tmp_path))
    with bench.device_memory(samples):
        time.sleep(0.4)
    assert samples == [], "nvidia-smi is not installed"
    (tmp_path / "nvidia-smi").write_text("#!/bin/sh\necho 1000\necho 24\n")
    (tmp_path / "nvidia-smi").chmod(0o755)
    with bench.device_memory(samples):
        time.sleep(1)
    assert samples[0][1] == 1024


@pytest.mark.long
def test_the_benchmark_for_gpus_runs_on_the_cpu_with_a_tiny_model() -> None:
    options = ["--tiny", "--device", "cpu", "--steps", "6", "--class-images", "4", "--method", "LoRA"]
    command = [sys.executable, str(BENCH / "gpu.py"), *options]
    environment = {**ENVIRONMENT, "COLUMNS": "200"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=550, env=environment)
    assert done.returncode == 0, done.stderr
    assert re.search(r"plain loop: \d+\.\d+ steps per second", done.stdout)
    for phase in TrainerPhase:
        assert re.search(rf"│ {phase} +│ +\d+\.\d", done.stdout), phase
    assert re.search(r"│ Train .*│ +\d+\.\d\d +│$", done.stdout, re.MULTILINE), "the workers' memory was sampled"
