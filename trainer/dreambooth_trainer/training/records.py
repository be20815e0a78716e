"""Records the losses of steps. They stay on the device for some steps, because reading them waits for the GPU."""

from __future__ import annotations

import torch
from torch import Tensor

from dreambooth_trainer.training.messages import StepRecord

READ_EVERY_STEPS = {"cuda": 20, "cpu": 1}


class LossRecorder:
    """Losses of all steps.

    Args:
        records: of the steps done before.
        num_micro_batches: per step, over all workers.
        has_prior_loss: whether the prior loss is recorded.
    """

    def __init__(
        self, records: list[StepRecord], *, world_size: int, num_micro_batches: int, has_prior_loss: bool
    ) -> None:
        self.records = records
        self._world_size, self._num_micro_batches = world_size, num_micro_batches
        self._has_prior_loss = has_prior_loss
        self._unread: list[tuple[Tensor, float]] = []

    def add(self, loss_sums: Tensor, learning_rate: float) -> None:
        """Add a step.

        Args:
            loss_sums: this worker's sums over its micro-batches, [3]: total, instance, prior.
        """
        self._unread.append((loss_sums, learning_rate))

    def due(self) -> bool:
        """Whether enough steps are unread. The answer is the same on all workers."""
        return bool(self._unread) and len(self._unread) >= READ_EVERY_STEPS[self._unread[0][0].device.type]

    def read(self) -> None:
        """Append the unread steps to `records`. All workers must call this after the same step."""
        if not self._unread:
            return
        sums = torch.stack([losses for losses, _ in self._unread])
        if self._world_size > 1:
            torch.distributed.all_reduce(sums)
        rates = [rate for _, rate in self._unread]
        for (loss, instance, prior), rate in zip((sums / self._num_micro_batches).tolist(), rates, strict=True):
            step = len(self.records) + 1
            self.records.append(
                StepRecord(step, loss, instance, prior if self._has_prior_loss else None, rate, self._world_size)
            )
        self._unread.clear()
