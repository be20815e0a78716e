"""What a training run needs of a worker's memory, and the lowest ZeRO stage that fits. Pure arithmetic.

The states' share is exact: ZeRO (Rajbhandari et al. 2020, section 3) keeps weights and gradients in the training
precision and 12 bytes a weight for Adam in fp32. The activations' share is an estimate from U-Net shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

GIB = 2**30
BYTES = {"bf16": 2, "fp32": 4}
# Stored by one image through a U-Net at a 64 x 64 latent, of a block width of 320: measured once for Stable Diffusion
# 1.5 in bf16 with fused attention; scaled by area, width and bytes for others. Checkpointing keeps about a sixth.
ACTIVATION_BYTES_BF16 = 3.2 * GIB
CHECKPOINTED_SHARE = 1 / 6


@dataclass(frozen=True)
class ModelSize:
    """Counts of weights, and what activations scale with.

    Attributes:
        latent_side: side of the training latents, pixels.
        width: channels of the denoiser's first block.
    """

    trainable: int
    frozen: int
    latent_side: int
    width: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes a worker needs, by what for."""

    weights: float
    gradients: float
    optimizer: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimizer + self.activations


def memory_need(
    size: ModelSize, *, stage: int, workers: int, precision: str, images: int, checkpointing: bool
) -> MemoryNeed:
    """Memory of one worker.

    Args:
        images: of one micro-batch, class images included.
    """
    width = BYTES[precision]
    split_weights = workers if stage >= 3 else 1
    split_gradients = workers if stage >= 2 else 1
    scale = (size.latent_side / 64) ** 2 * size.width / 320 * width / 2
    return MemoryNeed(
        weights=width * (size.trainable + size.frozen) / split_weights,
        gradients=width * size.trainable / split_gradients,
        optimizer=12 * size.trainable / workers,
        activations=ACTIVATION_BYTES_BF16 * scale * images * (CHECKPOINTED_SHARE if checkpointing else 1),
    )


def choose_stage(
    wanted: Literal["auto", "1", "2", "3"],
    size: ModelSize,
    *,
    available: float,
    workers: int,
    precision: str,
    images: int,
    checkpointing: bool,
) -> tuple[int, str]:
    """The ZeRO stage to use, and why in a sentence.

    Args:
        available: bytes of memory that one worker has.
    """
    if wanted != "auto":
        return int(wanted), "the job asks for it"
    for stage in (1, 2, 3):
        need = memory_need(
            size, stage=stage, workers=workers, precision=precision, images=images, checkpointing=checkpointing
        )
        if need.total <= 0.9 * available:
            return stage, f"the lowest that fits: {need.total / GIB:.2f} of {available / GIB:.1f} GiB a worker"
    return 3, f"even stage 3 needs {need.total / GIB:.2f} of {available / GIB:.1f} GiB a worker: expect it to run out"
