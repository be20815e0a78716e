"""A copy of a training state in host memory, which is written to files while training changes the original."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dreambooth_trainer.training.checkpoint import TAG

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine

Snapshot = Mapping[str, Any]
"""What `torch.save` is to write, by file name relative to the checkpoint folder."""

MEMORY_MARGIN = 0.15  # of the machine: Ray kills workers when 95% of the memory is used


def fits_in_memory(num_bytes: float, free_bytes: int, total_bytes: int) -> bool:
    """Whether a snapshot of this size leaves enough of a machine's memory free."""
    return free_bytes - num_bytes > MEMORY_MARGIN * total_bytes


def snapshot_bytes(module: torch.nn.Module, world_size: int) -> float:
    """Size of the snapshot of one process: its share of the optimizer's state, and the trainable weights."""
    trainable = sum(getattr(p, "ds_numel", p.numel()) for p in module.parameters() if p.requires_grad)
    return trainable * (12 / world_size + 4)


def write_snapshot(snapshot: Snapshot, folder: Path) -> None:
    """Write the files of a snapshot into a checkpoint folder."""
    for name, state in snapshot.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        torch.save(state, folder / name)


def deepspeed_snapshot(engine: DeepSpeedEngine) -> Snapshot:
    """What `engine.save_checkpoint` would write. Every rank must call this."""
    from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

    files: dict[str, Any] = {}

    class Recorder(TorchCheckpointEngine):
        def save(self, state_dict: Any, path: str) -> None:
            files[path] = copy_to_host(state_dict)

    original = engine.checkpoint_engine
    engine.checkpoint_engine = Recorder()
    try:
        with tempfile.TemporaryDirectory() as folder:
            engine.save_checkpoint(folder, tag=TAG, client_state={}, save_latest=False, exclude_frozen_parameters=True)
            return {str(Path(path).relative_to(folder)): state for path, state in files.items()}
    finally:
        engine.checkpoint_engine = original


def copy_to_host(state: Any) -> Any:
    """A copy of nested containers with all tensors in host memory. It shares nothing that training changes."""
    if isinstance(state, torch.Tensor):
        return state.detach().to("cpu", copy=True)
    if isinstance(state, dict):
        copied = copy.copy(state)  # keeps the type
        for key, value in state.items():
            copied[key] = copy_to_host(value)
        return copied
    if type(state) in (list, tuple):
        return type(state)(copy_to_host(value) for value in state)
    return copy.deepcopy(state)
