"""The interface of a training engine: optimizer steps on this process's share of a batch, and their checkpoints."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import Batch
from dreambooth_trainer.training.module import DreamBoothModule
from dreambooth_trainer.training.snapshot import Snapshot

AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}
"""The number format of a precision's autocast."""


class Engine(Protocol):
    """Trains a `DreamBoothModule`. All workers of a job have the same kind of engine."""

    module: DreamBoothModule
    device: torch.device

    @property
    def learning_rate(self) -> float:
        """Learning rate of the denoiser in the next step."""
        ...

    def step(self, micro_batches: Iterable[Batch]) -> Tensor:
        """Run one optimizer step over all micro-batches of this process.

        Returns:
            Sum of the micro-batches' losses (`DreamBoothModule.forward`), on the device; reading it synchronizes.
        """
        ...

    def save(self, folder: Path) -> None:
        """Write this process's part of a checkpoint, with the optimizer's state."""
        ...

    def snapshot(self) -> Snapshot:
        """A copy in host memory of what `save` writes. Every rank must call this."""
        ...

    def save_weights(self, folder: Path, rank: int) -> None:
        """Write the trainable weights in fp32 on rank 0. Every rank must call this."""
        ...


def open_engine(plan: Plan, world_size: int, checkpoint: Path | None, initial_adapter: Path | None = None) -> Engine:
    """The engine for a world size: plain PyTorch if there is nothing to partition, DeepSpeed otherwise.

    Args:
        checkpoint: continue from this checkpoint, which any engine saved at any world size.
        initial_adapter: file with the adapter to start from, if there is no checkpoint.
    """
    if checkpoint is not None:
        initial_adapter = None
    if plan.needs_deepspeed(world_size):
        from dreambooth_trainer.training.deepspeed_engine import ZeroEngine

        return ZeroEngine(plan, world_size, checkpoint, initial_adapter)
    from dreambooth_trainer.training.plain_engine import PlainEngine

    return PlainEngine(plan, checkpoint, initial_adapter)
