"""Samples the memory of Ray's worker processes, for `bench/gpu.py`. Ray calls `record` in each process that it starts.

A sample is a line of JSON in a file of its process: the time, the most memory that PyTorch allocated on the GPU since
the previous sample, and the resident memory.
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

FOLDER_VARIABLE = "DREAMBOOTH_BENCH_PEAKS"
INTERVAL_SECONDS = 0.1


@dataclass(frozen=True)
class Peak:
    """Most memory of any one process, in bytes; None without samples, or for a process without a GPU."""

    gpu: int | None
    resident: int | None


def record() -> None:
    """Start a thread that writes samples until the process ends."""
    threading.Thread(target=_record, args=(Path(os.environ[FOLDER_VARIABLE]),), daemon=True).start()


def _record(folder: Path) -> None:
    with (folder / f"{os.getpid()}.jsonl").open("a", buffering=1) as file:
        while True:
            sample = {"time": time.time(), "gpu": _gpu_bytes(), "resident": psutil.Process().memory_info().rss}
            file.write(json.dumps(sample) + "\n")
            time.sleep(INTERVAL_SECONDS)


def _gpu_bytes() -> int | None:
    # Importing PyTorch here would slow down processes that do not need it, and it may be half imported.
    cuda: Any = getattr(sys.modules.get("torch"), "cuda", None)
    if not getattr(cuda, "is_initialized", bool)():
        return None
    peak = cuda.max_memory_allocated()
    cuda.reset_peak_memory_stats()
    return peak


def read_peak(folder: Path, start: float, end: float) -> Peak:
    """The most memory of any one process between two times."""
    lines = [line for file in folder.glob("*.jsonl") for line in file.read_text().splitlines() if line.endswith("}")]
    samples = [sample for sample in map(json.loads, lines) if start <= sample["time"] <= end + INTERVAL_SECONDS]
    values = {key: [sample[key] for sample in samples if sample[key] is not None] for key in ("gpu", "resident")}
    return Peak(max(values["gpu"], default=None), max(values["resident"], default=None))
