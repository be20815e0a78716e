"""Checkpoints of a DeepSpeed engine, which can be loaded at any world size."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from dreambooth_trainer.cluster.hardware import free_memory, machine_cores

TAG = "step"
METADATA_FILE = "checkpoint-metadata.json"
WEIGHTS_FILE = "trained-weights.safetensors"
CHECKPOINT_SECONDS = 600


@dataclass(frozen=True)
class CheckpointMetadata:
    """State in which a checkpoint was saved.

    Attributes:
        step: optimizer steps done.
        world_size: number of training processes.
        precision: "bf16" or "fp32".
    """

    step: int
    world_size: int
    zero_stage: int
    precision: str


def checkpoint_due(step: int, every_steps: int | None, seconds_since_last: float) -> bool:
    """Whether to save a checkpoint after a step: every ten minutes, and every `every_steps` steps if set."""
    return seconds_since_last >= CHECKPOINT_SECONDS or (every_steps is not None and step % every_steps == 0)


def read_metadata(folder: Path) -> CheckpointMetadata:
    """The metadata that `write_metadata` stored in a checkpoint folder."""
    return CheckpointMetadata(**json.loads((folder / METADATA_FILE).read_text()))


def write_metadata(folder: Path, metadata: CheckpointMetadata) -> None:
    """Store metadata in a checkpoint folder, as JSON."""
    (folder / METADATA_FILE).write_text(json.dumps(asdict(metadata)))


def convert_to_universal(folder: Path) -> None:
    """Add DeepSpeed's universal checkpoint, which can be loaded at any world size.

    All workers of a machine may call this at the same time; one of them converts. The checkpoint folder is often on a
    network: the conversion, which writes a file per parameter and shard, works in local scratch.
    """
    universal = folder / "universal"
    with FileLock(str(folder / "universal.lock")):
        if (folder / "latest_universal").exists():
            return
        sizes = [path.stat().st_size for path in (folder / TAG).glob("*_optim_states.pt")]
        with tempfile.TemporaryDirectory(dir=scratch_folder(folder, sum(sizes)), prefix="universal-") as scratch:
            _convert(folder / TAG, Path(scratch) / "universal", num_readers(sizes, machine_cores(), free_memory()))
            shutil.copytree(Path(scratch) / "universal", universal, dirs_exist_ok=True)
        (folder / "latest_universal").write_text("universal")


def scratch_folder(folder: Path, num_bytes: int) -> Path:
    """Where to convert a checkpoint of this size: the local folder for temporary files, or `folder` if that is full."""
    local = Path(tempfile.gettempdir())
    # The parts of all parameters, and the parameters.
    return local if shutil.disk_usage(local).free > 2.5 * num_bytes else folder


def num_readers(shard_bytes: list[int], cores: int, free_bytes: int) -> int:
    """Number of processes that read shards at the same time, each of which loads a whole shard."""
    return max(1, min(cores, len(shard_bytes), free_bytes // max(shard_bytes)))


def _convert(source: Path, target: Path, readers: int) -> None:
    folders = ["--input_folder", str(source), "--output_folder", str(target)]
    processes = ["--num_extract_workers", str(readers), "--num_merge_workers", str(machine_cores())]
    # A process of its own: DeepSpeed forks, which is not safe in a process with the threads of Ray and PyTorch.
    command = [sys.executable, "-m", "dreambooth_trainer.training.only_weights", *folders, *processes]
    done = subprocess.run(  # noqa: S603 - no shell
        [*command, "--inject_missing_state"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        raise RuntimeError(f"the checkpoint {source} cannot be converted to another world size: {reason}")


def save_trained_weights(module: nn.Module, folder: Path, rank: int) -> None:
    """Write the trainable weights in fp32, consolidated from all workers, without the optimizer's state.

    Every rank must call this, because the weights are partitioned; rank 0 writes.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    weights: dict[str, Tensor] = {}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            full = safe_get_full_fp32_param(parameter)
            if rank == 0:
                assert full is not None, name
                weights[name] = full.detach().cpu().clone()
    if rank == 0:
        save_file(weights, folder / WEIGHTS_FILE)


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The weights that `save_trained_weights` wrote, by name in `DreamBoothModule`."""
    return load_file(folder / WEIGHTS_FILE)
