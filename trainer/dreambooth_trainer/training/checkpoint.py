"""Checkpoints of a DeepSpeed engine, which can be loaded at any world size."""

from __future__ import annotations

import contextlib
import io
import json
from argparse import Namespace
from dataclasses import asdict, dataclass
from pathlib import Path

from filelock import FileLock
from torch import Tensor

TAG = "step"
METADATA_FILE = "checkpoint-metadata.json"


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


def trained_weights(folder: Path) -> dict[str, Tensor]:
    """The trainable weights in fp32, consolidated from the shards of all workers, by name in `DreamBoothModule`."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
    return {name: tensor.clone() for name, tensor in (weights or {}).items()}
