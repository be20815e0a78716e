"""Time and memory of a complete job on a GPU, compared with a plain diffusers training loop: `python bench/gpu.py`.

Runs a job of Stable Diffusion 1.5's real size with random weights: class images, encoding, training, evaluation and
publishing. Prints for each phase its time and the peak of GPU memory that PyTorch allocated in one worker process and
that nvidia-smi shows for all GPUs, then the training steps per second beside those of the usual script: fp32 weights
under autocast, images and prompts encoded at each step. Random weights need no download. Takes a few minutes.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import click
from peaks import FOLDER_VARIABLE, Peak, read_peak
from ray._private.ray_constants import WORKER_PROCESS_SETUP_HOOK_ENV_VAR
from rich.console import Console
from rich.table import Table

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.hardware import DeviceError, local_devices
from dreambooth_trainer.cluster.session import ray_cluster
from dreambooth_trainer.progress.console import LineReporter, PhaseProgress
from dreambooth_trainer.runner import prepare_job, run_job
from dreambooth_trainer.store.folder import JobFolder

METHODS = ("Full", "LoRA")
MIB, GIB = 2**20, 2**30


@dataclass
class _Steps:
    """Progress of a phase that also keeps the time of each new count."""

    inner: PhaseProgress
    seen: list[tuple[float, int]] = field(default_factory=list)

    def total(self, count: int) -> None:
        self.inner.total(count)

    def done(self, count: int, **facts: float | int | str) -> None:
        self.inner.done(count, **facts)
        if not self.seen or count > self.seen[-1][1]:
            self.seen.append((time.time(), count))


@dataclass
class TimingReporter(LineReporter):
    """Prints one line per phase, and keeps the start and end of each and the steps of training.

    Attributes:
        times: start and end of each phase, seconds since the epoch.
        steps: times and counts of completed training steps.
    """

    times: dict[TrainerPhase, tuple[float, float]] = field(default_factory=dict)
    steps: list[tuple[float, int]] = field(default_factory=list)

    @contextlib.contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        start = time.time()
        with super().phase(name) as inner:
            progress = _Steps(inner)
            yield progress
        self.times[name] = start, time.time()
        if name is TrainerPhase.TRAIN:
            self.steps = progress.seen


def steps_per_second(steps: list[tuple[float, int]]) -> float | None:
    """Rate between the first and the last report of a step; None if there are fewer than two reports."""
    if len(steps) < 2:
        return None
    (start, first), (end, last) = steps[0], steps[-1]
    return (last - first) / (end - start)


def make_job(model: Path, method: str, *, steps: int, class_images: int, resolution: int, gpu: int) -> DreamBoothJob:
    """One instance image and one class image per step, as in the paper; a small evaluation without downloads."""
    return DreamBoothJob.model_validate(
        {
            "apiVersion": "dreambooth.dev/v1alpha1",
            "kind": "DreamBoothJob",
            "metadata": {"name": f"bench-{method.lower()}"},
            "spec": {
                "model": {"id": str(model)},
                "subject": {"class": "dog", "identifier": "sks", "images": {"uri": "builtin:sprites/dog-pink-blue"}},
                "priorPreservation": {"numClassImages": class_images},
                "training": {
                    "method": method,
                    "steps": steps,
                    "globalBatchSize": 1,
                    "resolution": resolution,
                    "textEncoder": {"train": False},
                },
                "evaluation": {
                    "prompts": ["a {} on the beach"],
                    "imagesPerPrompt": 2,
                    "encoders": {"dino": "builtin:sprites", "clip": "builtin:sprites"},
                },
                "cluster": {"workers": 1, "resources": {"gpu": gpu}},
            },
        }
    )


@contextlib.contextmanager
def device_memory(samples: list[tuple[float, int]]) -> Iterator[None]:
    """Sample the memory in use on all GPUs until the block ends, if nvidia-smi is installed: time and MiB."""
    stop = threading.Event()
    query = ["nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits"]

    def sample() -> None:
        while not stop.wait(0.25):
            output = subprocess.run(query, capture_output=True, text=True, check=False).stdout.split()
            if output and all(value.isdecimal() for value in output):
                samples.append((time.time(), sum(map(int, output))))

    thread = threading.Thread(target=sample, daemon=True)
    if shutil.which(query[0]):
        thread.start()
    try:
        yield
    finally:
        stop.set()


def measure_job(job: DreamBoothJob, folder: Path, console: Console) -> tuple[TimingReporter, Table]:
    """Run a job; returns the times of its phases, and a table of them with the memory peaks."""
    reporter, devices, peaks = TimingReporter(console), list[tuple[float, int]](), folder / "peaks"
    peaks.mkdir(parents=True)
    os.environ[FOLDER_VARIABLE] = str(peaks)
    # Workers inherit the environment. A runtime_env with this hook would slow down their start.
    os.environ[WORKER_PROCESS_SETUP_HOOK_ENV_VAR] = "peaks.record"
    os.environ["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    with device_memory(devices), ray_cluster():
        run_job(prepare_job(job), JobFolder(folder / "job"), str(folder / "store"), reporter)
    title = f"{job.spec.training.method}, {job.spec.training.resolution} px, {job.spec.training.steps} steps"
    table = Table("phase", "seconds", "peak GPU memory, GiB", "all GPUs, GiB", "peak resident, GiB", title=title)
    for name, (start, end) in reporter.times.items():
        peak, used = read_peak(peaks, start, end), [mib for at, mib in devices if start <= at <= end]
        table.add_row(name, f"{end - start:.1f}", *_memory(peak, max(used, default=None)))
    return reporter, table


def _memory(peak: Peak, device_mib: int | None) -> tuple[str, str, str]:
    values = (peak.gpu, device_mib and device_mib * MIB, peak.resident)
    gpu, devices, resident = ("-" if value is None else f"{value / GIB:.2f}" for value in values)
    return gpu, devices, resident


def check_device(device: str) -> None:
    """Exit with one sentence if there is no GPU, or if CUDA does not work."""
    if device == "cpu":
        return
    try:
        devices, note = local_devices()
    except DeviceError as error:
        sys.exit(f"bench/gpu.py needs a GPU: {error}")
    if not devices:
        sys.exit(f"bench/gpu.py needs a GPU: {note or 'this machine has none.'}")


@click.command(help=__doc__)
@click.option("--steps", default=200, show_default=True, help="Training steps of each job and of the plain loop.")
@click.option("--class-images", default=16, show_default=True)
@click.option("--method", "methods", multiple=True, type=click.Choice(METHODS), default=METHODS, show_default=True)
@click.option("--device", type=click.Choice(["cuda", "cpu"]), default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny model at 64 px, to try this program.")
def main(steps: int, class_images: int, methods: tuple[str, ...], device: str, tiny: bool) -> None:
    check_device(device)
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    # Imported here, because these take seconds and print warnings that the line above hides.
    from plain_loop import PlainLoop, run_plain_loop
    from random_model import write_model

    console, resolution = Console(), 64 if tiny else 512
    with tempfile.TemporaryDirectory(prefix="dreambooth-bench-") as temporary:
        folder = Path(temporary)
        write_model(folder / "base", tiny=tiny)
        plain = PlainLoop(folder / "base", device, resolution, steps)
        # In a process of its own, which frees the GPU when it ends.
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
            reference = pool.submit(run_plain_loop, plain).result()
        peak = "-" if reference.peak_bytes is None else f"{reference.peak_bytes / GIB:.2f} GiB"
        console.print(f"plain loop: {reference.steps_per_second:.2f} steps per second, peak GPU memory {peak}")
        options = {"steps": steps, "class_images": class_images, "resolution": resolution, "gpu": int(device == "cuda")}
        for method in methods:
            job = make_job(folder / "base", method, **options)
            reporter, table = measure_job(job, folder / method, console)
            console.print(table)
            rate = steps_per_second(reporter.steps)
            if rate is None:
                console.print(f"{method}: too few steps to measure a rate; increase --steps")
            else:
                ratio = rate / reference.steps_per_second
                console.print(f"{method}: {rate:.2f} steps per second, {ratio:.2f} x the plain loop")


if __name__ == "__main__":
    main()
