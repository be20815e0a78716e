"""Estimates the memory of a training process, and chooses the lowest ZeRO stage that fits.

The memory of the model states is exact: ZeRO (Rajbhandari et al. 2020, section 3) keeps weights and gradients in the
training precision and 12 bytes per weight for Adam in fp32. A step adds an fp32 copy of the gradient partition, the
temporaries of torch's foreach AdamW, and a bucket. Activations are estimated from U-Net shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

GIB = 2**30
BYTES = {"bf16": 2, "fp32": 4}
# A bucket larger than the model wastes memory, because ZeRO-2 allocates it in full.
MAX_BUCKET_ELEMENTS = 100_000_000
# Activations kept for the backward pass, per image with a 64 x 64 latent and a first block of 320 channels. Measured
# with Stable Diffusion 1.5 in bf16 with fused attention; scaled by area, width and bytes for other models.
ACTIVATION_BYTES_BF16 = 0.92 * GIB
CHECKPOINTED_SHARE = 0.14 / 0.92
# A process that has imported PyTorch, diffusers and DeepSpeed; on a GPU, the CUDA context and NCCL.
RUNTIME_BYTES = 1.0 * GIB
# Decoding of one image with a 64 x 64 latent in fp32, which the autoencoder also uses if the U-Net is in bf16. Larger
# latents are decoded in tiles.
DECODE_BYTES = 1.0 * GIB
MAX_TILE_SIDE = 96


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts, and the dimensions that activations scale with.

    Attributes:
        trainable: parameters with gradients; with LoRA, those of the adapters.
        frozen: parameters that training loads but does not update.
        total: parameters of the pipeline: denoiser, text encoder and autoencoder.
        latent_side: side length of the training latents.
        width: channels of the denoiser's first block.
    """

    trainable: int
    frozen: int
    total: int
    latent_side: int
    width: int


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of one training process in bytes, by purpose."""

    weights: float
    gradients: float
    optimizer: float
    step: float
    activations: float
    runtime: float = RUNTIME_BYTES

    @property
    def total(self) -> float:
        return sum(getattr(self, field.name) for field in fields(self))

    def __str__(self) -> str:
        parts = ", ".join(f"{field.name} {getattr(self, field.name) / GIB:.2f}" for field in fields(self))
        return f"{self.total / GIB:.1f} GiB ({parts})"


def bucket_elements(trainable: int) -> int:
    """Number of elements of DeepSpeed's communication buckets."""
    return min(MAX_BUCKET_ELEMENTS, max(1_000_000, trainable))


def memory_need(
    size: ModelSize,
    *,
    stage: int,
    world_size: int,
    precision: str,
    images: int,
    checkpointing: bool,
    offload_optimizer: bool = False,
) -> MemoryNeed:
    """Memory of one training process; on a GPU, without the optimizer state that is offloaded to the host.

    Args:
        images: images per micro-batch, including class images.
    """
    element_bytes = BYTES[precision]
    weight_partitions = world_size if stage >= 3 else 1
    gradient_partitions = world_size if stage >= 2 else 1
    optimized = 0 if offload_optimizer else size.trainable / world_size
    scale = (size.latent_side / 64) ** 2 * size.width / 320 * element_bytes / 2
    return MemoryNeed(
        weights=element_bytes * (size.trainable + size.frozen) / weight_partitions,
        gradients=element_bytes * size.trainable / gradient_partitions,
        optimizer=12 * optimized,
        step=8 * optimized + element_bytes * bucket_elements(size.trainable),
        activations=ACTIVATION_BYTES_BF16 * scale * images * (CHECKPOINTED_SHARE if checkpointing else 1),
    )


def sampling_need(size: ModelSize, *, precision: str, batch_size: int) -> float:
    """Memory in bytes of a process that generates a batch of images."""
    decode = DECODE_BYTES * (min(size.latent_side, MAX_TILE_SIDE) / 64) ** 2 * min(batch_size, 4)
    return RUNTIME_BYTES + BYTES[precision] * size.total + decode


@dataclass(frozen=True)
class StageChoice:
    """A ZeRO stage, the reason for it, the memory it needs, and whether that is available."""

    stage: int
    reason: str
    need: MemoryNeed
    fits: bool


def choose_stage(
    requested: Literal["auto", "1", "2", "3"],
    size: ModelSize,
    *,
    available: float | None,
    world_size: int,
    precision: str,
    images: int,
    checkpointing: bool,
    offload_optimizer: bool = False,
) -> StageChoice:
    """Choose the lowest ZeRO stage that fits, or the stage that the job sets.

    Args:
        available: memory of one training process in bytes; None if unknown.
    """

    def need(stage: int) -> MemoryNeed:
        return memory_need(
            size,
            stage=stage,
            world_size=world_size,
            precision=precision,
            images=images,
            checkpointing=checkpointing,
            offload_optimizer=offload_optimizer,
        )

    if requested != "auto":
        chosen = need(int(requested))
        return StageChoice(int(requested), "set by the job", chosen, available is None or chosen.total <= available)
    if available is None:
        return StageChoice(1, "the memory of the workers is unknown", need(1), fits=True)
    highest = 3 if world_size > 1 else 1  # a single process has nothing to partition
    stage = next((stage for stage in range(1, highest) if need(stage).total <= available), highest)
    chosen = need(stage)
    fits = chosen.total <= available
    reason = "the lowest that fits" if fits else "the highest, but it does not fit"
    return StageChoice(stage, f"{reason}: {chosen.total / GIB:.1f} of {available / GIB:.1f} GiB", chosen, fits)
