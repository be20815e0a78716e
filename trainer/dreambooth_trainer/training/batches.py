"""Images, positions in the noise schedule and noise of each step, as a function of the seed and the step only.

A batch does not depend on the number of workers, or on whether the run was interrupted. Therefore the losses after a
resume, also at another world size, equal those of an uninterrupted run.
Legend: B images of one kind (instance or class images) in a micro-batch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dreambooth_trainer.families.base import Tensors

# Distance of the seeds of the subjects. torch uses the low 32 bits of a seed.
_SUBJECT_STRIDE = 1 << 16


@dataclass(frozen=True)
class BatchSample:
    """A micro-batch of one kind of image: indices of the images, positions in [0, 1), and noise seeds, each [B]."""

    indices: Tensor
    u: Tensor
    noise_seeds: Tensor


@dataclass(frozen=True)
class Batch:
    """A micro-batch of one worker: instance images, then class examples. n = B, or 2 B with class examples.

    Attributes:
        examples, noise: each [n, ...]; see `Stage.denoise`.
        u: position in the noise schedule, in [0, 1), [n].
        num_instance_images: B.
    """

    examples: Tensors
    noise: Tensors
    u: Tensor
    num_instance_images: int

    def rows(self, first: int, end: int | None) -> Batch:
        """Some examples, taken as instance images."""
        examples = {name: tensor[first:end] for name, tensor in self.examples.items()}
        noise = {name: tensor[first:end] for name, tensor in self.noise.items()}
        u = self.u[first:end]
        return Batch(examples, noise, u, num_instance_images=len(u))


@dataclass(frozen=True)
class DeterministicSampler:
    """Samples the images of one kind, rotating through the subjects: all images in each epoch, in a new order.

    Attributes:
        images: indices of the images of each subject, each as often as it occurs in an epoch. Subjects with the same
            ones share images and epochs.
        batch_size: images of this kind per optimizer step, over all workers and gradient accumulation steps.
        num_variants: augmented variants of each image. Indices count variants: those of image i start at
            i x num_variants.
    """

    images: tuple[Sequence[int], ...]
    batch_size: int
    seed: int
    num_variants: int = 1

    def sample(self, step: int, micro_batch: int, num_micro_batches: int) -> BatchSample:
        """One micro-batch of an optimizer step.

        Args:
            micro_batch: index in [0, num_micro_batches).
            num_micro_batches: world size times gradient accumulation steps.

        Raises:
            ValueError: the batch cannot be split evenly, so a step would use fewer images.
        """
        if self.batch_size % num_micro_batches:
            raise ValueError(
                f"a batch of {self.batch_size} images cannot be split into {num_micro_batches} micro-batches"
            )
        size = self.batch_size // num_micro_batches
        generator = torch.Generator().manual_seed(_mix(self.seed, step))
        u = torch.rand(self.batch_size, generator=generator)
        seeds = torch.randint(0, 2**62, (self.batch_size,), generator=generator)
        # Drawn last, so that augmentation does not change the noise and its level.
        variants = torch.randint(0, self.num_variants, (self.batch_size,), generator=generator).tolist()
        rows = range(micro_batch * size, (micro_batch + 1) * size)
        indices = [self._index(step * self.batch_size + row) * self.num_variants + variants[row] for row in rows]
        return BatchSample(torch.tensor(indices), u[rows.start : rows.stop], seeds[rows.start : rows.stop])

    def _index(self, position: int) -> int:
        """The image at a position of the sequence in which the subjects take turns."""
        turn, subject = divmod(position, len(self.images))
        images = self.images[subject]
        sharing = [other for other, shared in enumerate(self.images) if shared == images]
        epoch, offset = divmod(turn * len(sharing) + sharing.index(subject), len(images))
        generator = torch.Generator().manual_seed(_mix(self.seed + 1 + sharing[0] * _SUBJECT_STRIDE, epoch))
        return images[int(torch.randperm(len(images), generator=generator)[offset])]


def noise(seeds: Tensor, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor]:
    """Standard normal noise, fp32, each [B, *shape]. Each row is from its own seed."""
    generators = [torch.Generator().manual_seed(int(seed)) for seed in seeds]
    rows = [
        {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()} for generator in generators
    ]
    return {name: torch.stack([row[name] for row in rows]) for name in shapes}


def _mix(seed: int, counter: int) -> int:
    # Two odd constants (Weyl and Steele) spread neighboring pairs over 63 bits.
    return (seed * 0x9E3779B97F4A7C15 + counter * 0xBF58476D1CE4E5B9 + 0x94D049BB133111EB) % 2**63
