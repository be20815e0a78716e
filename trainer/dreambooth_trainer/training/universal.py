"""Exchanges checkpoints between the engines, through the files of DeepSpeed's universal checkpoints.

A universal checkpoint has a folder `zero/<parameter>` with the fp32 weights and the optimizer's state of each
parameter, not partitioned. `checkpoint.convert_to_universal` makes one from the shards of all workers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import Tensor

from dreambooth_trainer.training.checkpoint import convert_to_universal, read_metadata

STATE_FILE = "state.pt"
UNIVERSAL, EXCHANGE = "universal", "exchange"
MOMENTS = ("exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class TrainingState:
    """The state of a training run, not partitioned.

    Attributes:
        step: optimizer steps done.
        weights: the trainable weights, fp32, by name in `DreamBoothModule`.
        optimizer: state of the optimizer by parameter name.
        scaler: state of the loss scaler; empty if there is none.
    """

    step: int
    weights: Mapping[str, Tensor]
    optimizer: Mapping[str, Mapping[str, Any]]
    scaler: Mapping[str, Any]


def load_state(folder: Path) -> TrainingState:
    """Read a checkpoint of any engine and world size, on the CPU."""
    if (folder / STATE_FILE).exists():
        return TrainingState(**torch.load(folder / STATE_FILE, map_location="cpu", weights_only=True))
    convert_to_universal(folder)
    step, root = read_metadata(folder).step, folder / UNIVERSAL / "zero"
    weights: dict[str, Tensor] = {}
    optimizer: dict[str, dict[str, Any]] = {}
    for path in sorted(root.glob("*/fp32.pt")):
        name = path.parent.name
        weights[name] = _read_tensor(path)
        moments = {key: _read_tensor(path.with_name(f"{key}.pt")) for key in MOMENTS}
        optimizer[name] = {"step": torch.tensor(float(step)), **moments}
    return TrainingState(step, weights, optimizer, {})


def write_exchange(folder: Path, lr_scheduler: Mapping[str, Any], param_groups: list[dict[str, Any]]) -> None:
    """Add the files of a universal checkpoint to a checkpoint of any engine, for any ZeRO stage.

    All workers of a machine may call this at the same time; one of them writes.

    Args:
        lr_scheduler: state of the learning rate schedule after the steps of the checkpoint.
        param_groups: hyperparameters of the optimizer, without parameters.
    """
    import deepspeed

    target, complete = folder / EXCHANGE, folder / f"{EXCHANGE}.complete"
    with FileLock(str(folder / f"{EXCHANGE}.lock")):
        if complete.exists():
            return
        state = load_state(folder)
        step = torch.tensor(float(state.step))
        for name, weight in state.weights.items():
            (target / "zero" / name).mkdir(parents=True, exist_ok=True)
            # The last layer of SDXL's first text encoder has no gradient, and so no state in AdamW.
            moments = state.optimizer.get(name) or {key: torch.zeros_like(weight) for key in MOMENTS}
            for key, value in {"fp32": weight, **moments, "step": step}.items():
                saved = step if key == "step" else {"param": value.view(weight.shape).clone(), "cat_dim": 0}
                torch.save(saved, target / "zero" / name / f"{key}.pt")
        optimizer_state = {
            "ds_version": deepspeed.__version__,
            "param_groups": param_groups,
            "optimizer_state_dict": {"state": {0: {"step": step}}, "param_groups": param_groups},  # ZeRO-3
        }
        torch.save(optimizer_state, target / "zero" / "optimizer_state.pt")
        counts = {"global_steps": state.step, "skipped_steps": 0, "dp_world_size": 1, "mp_world_size": 1}
        for prefix in ("", "zero_pp_rank_0_"):  # of ZeRO-1 and ZeRO-2, and of ZeRO-3
            model_state = {"module": {}, "lr_scheduler": dict(lr_scheduler), **counts}
            torch.save(model_state, target / f"{prefix}mp_rank_00_model_states.pt")
        complete.touch()


def _read_tensor(path: Path) -> Tensor:
    # ZeRO-1 and ZeRO-2 store a mapping, ZeRO-3 a flat tensor.
    value = torch.load(path, map_location="cpu", weights_only=True)
    return value["param"] if isinstance(value, dict) else value
