"""Memory of a whole job, compared with its plan: `python bench/memory.py [--model FOLDER] [--method LoRA]`.

Runs a job with random images on this machine, and polls the resident memory of the driver, of Ray and of all workers.
Prints the peak of each phase beside the plan, and the ratio. Pages that processes share are counted once. Pages of
mapped files, like weights that are being loaded, are in the sum and also shown alone: the kernel can drop them.
"""

from __future__ import annotations

import tempfile
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
from PIL import Image
from rich.console import Console
from rich.table import Table

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.planning.machine_memory import phase_bytes
from dreambooth_trainer.planning.memory import GIB
from dreambooth_trainer.planning.plan import SamplerSettings
from dreambooth_trainer.progress.console import LineReporter, PhaseProgress
from dreambooth_trainer.runner import PreparedJob, prepare_job, run_job
from dreambooth_trainer.store.folder import JobFolder

POLL_SECONDS = 0.25


class MemoryMonitor(LineReporter):
    """A reporter that records the memory of this process and its descendants in each phase.

    Attributes:
        totals: peak of the sum over all processes, by phase, bytes.
        mapped: pages of mapped files in that sum, at the time of the peak, bytes.
        processes: peak of the largest process of each kind, by phase and name of the Ray process, bytes.
    """

    def __init__(self, console: Console) -> None:
        super().__init__(console)
        self.totals: dict[TrainerPhase, int] = defaultdict(int)
        self.mapped: dict[TrainerPhase, int] = defaultdict(int)
        self.processes: dict[TrainerPhase, dict[str, int]] = defaultdict(dict)
        self._phase, self._stop = TrainerPhase.PREPARE, threading.Event()

    @contextmanager
    def phase(self, name: TrainerPhase) -> Iterator[PhaseProgress]:
        self._phase = name
        with super().phase(name) as progress:
            yield progress

    def __enter__(self) -> MemoryMonitor:
        threading.Thread(target=self._poll, daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()

    def _poll(self) -> None:
        root = psutil.Process()
        while not self._stop.wait(POLL_SECONDS):
            phase, total, mapped = self._phase, 0, 0
            for process in (root, *root.children(recursive=True)):
                try:
                    kind, (size, of_files) = process.cmdline()[0][:40], proportional_bytes(process.pid)
                except (psutil.Error, IndexError, OSError):
                    continue
                total, mapped = total + size, mapped + of_files
                self.processes[phase][kind] = max(self.processes[phase].get(kind, 0), size)
            if total > self.totals[phase]:
                self.totals[phase], self.mapped[phase] = total, mapped


def proportional_bytes(pid: int) -> tuple[int, int]:
    """Memory of a process in bytes, with its part of shared pages: all pages, and those of mapped files."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    fields = {name: int(rest.split()[0]) * 1024 for name, _, rest in (line.partition(":") for line in lines)}
    return fields["Pss"], fields["Pss_File"]


def make_job(
    model: str | None, method: str, folder: Path, training: dict[str, Any], workers: int, class_images: int
) -> DreamBoothJob:
    """A job with four random images and one evaluation prompt."""
    random = np.random.default_rng(0)
    for number in range(4):
        pixels = random.integers(0, 255, (64, 64, 3), dtype=np.uint8)
        Image.fromarray(pixels).resize((1024, 1024)).save(folder / f"{number}.png")
    spec: dict[str, Any] = {
        "subject": {"class": "dog", "images": {"uri": str(folder)}},
        "training": {"method": method, **training},
        "cluster": {"workers": workers},
        "priorPreservation": {"numClassImages": class_images, "sampler": {"steps": 1}},
        "evaluation": {"enabled": False, "prompts": ["{} on a beach"]},
    }
    if model is not None:
        spec["model"] = {"id": model}
    metadata = {"name": "memory"}
    return DreamBoothJob.model_validate(
        {"apiVersion": "dreambooth.dev/v1alpha1", "kind": "DreamBoothJob", "metadata": metadata, "spec": spec}
    )


def with_few_steps(prepared: PreparedJob) -> PreparedJob:
    """The same job with one denoising step per image. Memory does not depend on their number."""
    plan = prepared.plan
    sampler = SamplerSettings(steps=1, guidance_scale=plan.sampler.guidance_scale)
    return replace(prepared, planned=replace(prepared.planned, plan=plan.model_copy(update={"sampler": sampler})))


@click.command(help=__doc__)
@click.option("--model", help="Folder of the base model. Defaults to the embedded one.")
@click.option("--method", default="LoRA", show_default=True, type=click.Choice(["LoRA", "Full"]))
@click.option("--resolution", type=int, help="Side of the training images, pixels. Defaults to that of the model.")
@click.option("--steps", default=4, show_default=True)
@click.option("--workers", default=1, show_default=True)
@click.option("--class-images", default=8, show_default=True, help="Enough that batches have their full size.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder to keep. Another run continues there.")
@click.option("--checkpointing", is_flag=True, help="Gradient checkpointing.")
def main(
    model: str | None,
    method: str,
    resolution: int | None,
    steps: int,
    workers: int,
    class_images: int,
    out: Path | None,
    checkpointing: bool,
) -> None:
    training = {"resolution": resolution, "steps": steps, "gradientCheckpointing": checkpointing}
    if workers > 1:
        training["globalBatchSize"] = workers
    with tempfile.TemporaryDirectory() as scratch:
        folder = out or Path(scratch)
        images = folder / "images"
        images.mkdir(parents=True, exist_ok=True)
        prepared = with_few_steps(prepare_job(make_job(model, method, images, training, workers, class_images)))
        with MemoryMonitor(Console()) as monitor:
            try:
                run_job(prepared, JobFolder(folder / "out"), str(folder / "store"), monitor)
            finally:
                print_table(prepared, monitor)


def print_table(prepared: PreparedJob, monitor: MemoryMonitor) -> None:
    plan, planned = prepared.plan, prepared.planned
    needs = phase_bytes(
        planned.size,
        planned.choice.need,
        sampling_processes=planned.sampling_processes,
        training_processes=plan.world_sizes[1],
    )
    table = Table("phase", "GiB in use", "of mapped files", "planned", "ratio", "largest processes")
    for phase, total in monitor.totals.items():
        largest = sorted(monitor.processes[phase].items(), key=lambda row: -row[1])[:4]
        names = ", ".join(f"{name.removeprefix('ray::')} {size / GIB:.2f}" for name, size in largest)
        planned_gib, ratio = "", ""
        if phase in needs:
            planned_gib, ratio = f"{needs[phase] / GIB:.2f}", f"{total / needs[phase]:.2f}"
        mapped = f"{monitor.mapped[phase] / GIB:.2f}"
        table.add_row(phase, f"{total / GIB:.2f}", mapped, planned_gib, ratio, names)
    peak, need = max(monitor.totals.values()), max(needs.values())
    table.add_row("job", f"{peak / GIB:.2f}", "", f"{need / GIB:.2f}", f"{peak / need:.2f}", str(planned.choice.need))
    Console(width=160).print(table)


if __name__ == "__main__":
    main()
