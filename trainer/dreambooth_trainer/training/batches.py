"""Which images, time steps and noise each step takes: a function of the seed and of nothing else.

A batch is the same however many workers share it, whether the run was interrupted or not. That is what makes losses
after a resume, also at another world size, equal to an uninterrupted run's.
Legend: B images of one kind (instance or prior) in this worker's micro-batch.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BatchSample:
    """For one kind of image: which ones [B], their time steps [B], and seeds [B] of their noise."""

    indices: Tensor
    timesteps: Tensor
    noise_seeds: Tensor


@dataclass(frozen=True)
class DeterministicSampler:
    """How the images of one kind are drawn: each once, in an order that changes every time around.

    Attributes:
        images: how many there are.
        batch_size: drawn an optimizer step, over all workers and accumulation steps.
        timesteps: length of the noise schedule; time steps are uniform in [0, timesteps).
    """

    images: int
    batch_size: int
    timesteps: int
    seed: int

    def sample(self, step: int, part: int, parts: int) -> BatchSample:
        """Part `part` of `parts` of the batch of optimizer step `step`."""
        share = self.batch_size // parts
        generator = torch.Generator().manual_seed(_mix(self.seed, step))
        timesteps = torch.randint(0, self.timesteps, (self.batch_size,), generator=generator)
        seeds = torch.randint(0, 2**62, (self.batch_size,), generator=generator)
        mine = slice(part * share, (part + 1) * share)
        first = step * self.batch_size
        indices = [self._index(first + i) for i in range(part * share, (part + 1) * share)]
        return BatchSample(torch.tensor(indices), timesteps[mine], seeds[mine])

    def _index(self, position: int) -> int:
        round_, place = divmod(position, self.images)
        generator = torch.Generator().manual_seed(_mix(self.seed + 1, round_))
        return int(torch.randperm(self.images, generator=generator)[place])


def noise(seeds: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Standard normal noise, fp32 [B, *shape], each image's from its own seed."""
    return torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(int(s))) for s in seeds])


def _mix(seed: int, counter: int) -> int:
    # Two odd constants (Weyl and Steele) spread neighbouring pairs over 63 bits.
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
