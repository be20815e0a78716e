"""The memory that a job needs per worker, and the lowest ZeRO stage that fits. Pure arithmetic.

The share of the model states is exact: ZeRO (Rajbhandari et al. 2020, section 3) keeps weights and gradients in the
training precision and 12 bytes per weight for Adam in fp32. A step adds an fp32 copy of the gradient partition, the
temporaries of torch's foreach AdamW, and a bucket. Activations are estimated from U-Net shapes.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

GIB = 2**30
BYTES = {"bf16": 2, "fp32": 4}
# Buckets above the model's size only cost memory: ZeRO-2 allocates one in full.
MAX_BUCKET_ELEMENTS = 100_000_000
# Kept for backward by one image at a 64 x 64 latent, for a first block of 320 channels: Stable Diffusion 1.5 in bf16
# with fused attention. Scaled by area, width and bytes for others.
ACTIVATION_BYTES_BF16 = 0.92 * GIB
CHECKPOINTED_SHARE = 0.14 / 0.92
# A process with PyTorch, diffusers and DeepSpeed imported; on a GPU, the CUDA context and NCCL.
RUNTIME_BYTES = 1.0 * GIB
# The autoencoder decodes one image at a 64 x 64 latent, in fp32.
DECODE_BYTES = 1.0 * GIB


@dataclass(frozen=True)
class ModelSize:
    """Counts of weights, and what activations scale with.

    Attributes:
        whole: all weights that sampling loads: denoiser, text encoder and autoencoder.
        latent_side: side of the training latents, pixels.
        width: channels of the denoiser's first block.
    """

    trainable: int
    frozen: int
    whole: int
    latent_side: int
    width: int


@dataclass(frozen=True)
class MemoryNeed:
    """Bytes that one training process needs, by purpose."""

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
    """Size of DeepSpeed's communication buckets."""
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
    """Memory of one training process; on a GPU, without what is offloaded to the host.

    Args:
        images: of one micro-batch, class images included.
    """
    width = BYTES[precision]
    split_weights = world_size if stage >= 3 else 1
    split_gradients = world_size if stage >= 2 else 1
    on_device = 0 if offload_optimizer else size.trainable / world_size
    scale = (size.latent_side / 64) ** 2 * size.width / 320 * width / 2
    return MemoryNeed(
        weights=width * (size.trainable + size.frozen) / split_weights,
        gradients=width * size.trainable / split_gradients,
        optimizer=12 * on_device,
        step=8 * on_device + width * bucket_elements(size.trainable),
        activations=ACTIVATION_BYTES_BF16 * scale * images * (CHECKPOINTED_SHARE if checkpointing else 1),
    )


def sampling_need(size: ModelSize, *, precision: str, batch_size: int) -> float:
    """Bytes that one process needs to generate a batch of images."""
    decode = DECODE_BYTES * (size.latent_side / 64) ** 2 * min(batch_size, 4) * BYTES[precision] / 4
    return RUNTIME_BYTES + BYTES[precision] * size.whole + decode


@dataclass(frozen=True)
class StageChoice:
    """The ZeRO stage to use, why, what it needs, and whether that fits."""

    stage: int
    why: str
    need: MemoryNeed
    fits: bool


def choose_stage(
    wanted: Literal["auto", "1", "2", "3"],
    size: ModelSize,
    *,
    available: float | None,
    world_size: int,
    precision: str,
    images: int,
    checkpointing: bool,
    offload_optimizer: bool = False,
) -> StageChoice:
    """The lowest ZeRO stage that fits, or the one that the job asks for.

    Args:
        available: bytes of memory that one training process has; None if that is not known.
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

    if wanted != "auto":
        asked = need(int(wanted))
        return StageChoice(int(wanted), "the job asks for it", asked, available is None or asked.total <= available)
    if available is None:
        return StageChoice(1, "the memory of the workers is not known here", need(1), fits=True)
    highest = 3 if world_size > 1 else 1  # one process cannot shard
    stage = next((stage for stage in range(1, highest) if need(stage).total <= available), highest)
    chosen = need(stage)
    fits = chosen.total <= available
    why = "the lowest that fits" if fits else "the highest, and it does not fit"
    return StageChoice(stage, f"{why}: {chosen.total / GIB:.1f} of {available / GIB:.1f} GiB", chosen, fits)
