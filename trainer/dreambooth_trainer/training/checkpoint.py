"""Checkpoints of a DeepSpeed engine, which can be loaded at any world size."""

from __future__ import annotations

import contextlib
import io
import json
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

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

    All workers of a machine may call this at the same time; one of them converts.
    """
    from deepspeed.checkpoint.ds_to_universal import main as convert

    universal = folder / "universal"
    with FileLock(str(folder / "universal.lock")):
        if (folder / "latest_universal").exists():
            return
        arguments = Namespace(
            input_folder=str(folder / TAG),
            output_folder=str(universal),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        with contextlib.redirect_stdout(io.StringIO()):
            convert(arguments)
        (folder / "latest_universal").write_text("universal")


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
