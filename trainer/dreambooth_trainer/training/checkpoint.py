"""Checkpoints of a DeepSpeed engine: saved whole, read back at any world size."""

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
SHAPE_FILE = "saved-by.json"


@dataclass(frozen=True)
class CheckpointMetadata:
    """Who wrote a checkpoint: optimizer steps done, number of workers, ZeRO stage, number format."""

    step: int
    world_size: int
    zero_stage: int
    precision: str


def read_metadata(folder: Path) -> CheckpointMetadata:
    """What a checkpoint folder says of itself."""
    return CheckpointMetadata(**json.loads((folder / SHAPE_FILE).read_text()))


def write_metadata(folder: Path, metadata: CheckpointMetadata) -> None:
    """Say in a checkpoint folder who wrote it."""
    (folder / SHAPE_FILE).write_text(json.dumps(asdict(metadata)))


def convert_to_universal(folder: Path) -> None:
    """Add DeepSpeed's universal form to a checkpoint, once a machine: it loads at any world size.

    Safe to call from every worker of a machine at once.
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
    """The fp32 weights that learned, by their name in `DreamBoothModule`, put together from all workers' shards."""
    from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

    with contextlib.redirect_stdout(io.StringIO()):
        weights = get_fp32_state_dict_from_zero_checkpoint(str(folder), tag=TAG, exclude_frozen_parameters=True)
    return {name: tensor.clone() for name, tensor in (weights or {}).items()}
