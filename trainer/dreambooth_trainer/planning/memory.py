"""Estimates the memory of each phase's processes, and chooses the lowest ZeRO stage that fits.

The memory of the model states is exact: ZeRO (Rajbhandari et al. 2020, section 3) keeps weights and gradients in the
training precision and 12 bytes per weight for Adam in fp32. A step adds an fp32 copy of the gradient partition and a
bucket. A single process without DeepSpeed keeps weights, gradients and Adam's two moments in fp32.
`training.memory_count` counts activations.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Literal

GIB = 2**30
BYTES = {"bf16": 2, "fp16": 2, "fp32": 4}
# AdamW's two moments per parameter.
ADAM_BYTES = 8
ADAM_8BIT_BYTES = 2
# ZeRO's optimizer state per parameter: an fp32 master weight and AdamW's moments.
OPTIMIZER_BYTES = 4 + ADAM_BYTES
# A bucket larger than the model wastes memory, because ZeRO-2 allocates it in full.
MAX_BUCKET_ELEMENTS = 100_000_000
# A process that has imported PyTorch, diffusers and DeepSpeed; on a GPU, the CUDA context and NCCL.
RUNTIME_BYTES = 1.0 * GIB


@dataclass(frozen=True)
class ModelSize:
    """Parameter counts of a model, and bytes of its activations for the batches of a plan.

    Attributes:
        trainable: parameters with gradients; with LoRA, those of the adapters.
        frozen: parameters that training loads but does not update, in the training precision. Those that stay in fp32
            count as two.
        pipeline: bytes of the weights of a process that generates images: denoiser, text encoders and autoencoder.
        encoders: bytes of the text encoders and the autoencoder, as they are loaded for encoding.
        loaded: bytes of the modules that are trained, as they are loaded, before an engine casts them.
        assembled: bytes of all modules with the trained ones, when the published model is written.
        activations: bytes that the forward pass of one micro-batch keeps for the backward pass.
        backward: bytes at the peak of both passes in addition to the gradients of all trainable parameters.
        sampling: bytes at the peak of generating a batch of images, in addition to the weights.
        encoding: the same for encoding a batch of images with the autoencoder.
        data: bytes of the encoded class images, which each training process keeps on its device.
        validators: bytes of the weights that a training process loads for validation only.
        validation: the same, and bytes at the peak of generating one image; 0 without validation.
    """

    trainable: int
    frozen: int
    pipeline: int
    encoders: int
    loaded: int
    assembled: int
    activations: int
    backward: int
    sampling: int
    encoding: int
    data: int = 0
    validators: int = 0
    validation: int = 0


@dataclass(frozen=True)
class StateBytes:
    """Bytes per trainable parameter in one process.

    Attributes:
        optimizer: kept between steps, without weights and gradients.
        step: temporaries of the optimizer step.
    """

    weights: float
    gradients: float
    optimizer: float
    step: float


@dataclass(frozen=True)
class MemoryNeed:
    """Memory of one training process in bytes, by purpose.

    Attributes:
        working: what a step allocates in addition to gradients: activations, later temporaries of the optimizer.
    """

    weights: float
    gradients: float
    optimizer: float
    working: float
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


def zero_bytes(stage: int, world_size: int, precision: str, *, offload_optimizer: bool = False) -> StateBytes:
    """Bytes per trainable parameter under ZeRO; on a GPU, without the optimizer state that is offloaded to the host."""
    element = BYTES[precision]
    optimized = 0 if offload_optimizer else 1 / world_size
    return StateBytes(
        weights=element / (world_size if stage >= 3 else 1),
        gradients=element / (world_size if stage >= 2 else 1),
        optimizer=OPTIMIZER_BYTES * optimized,
        step=4 * optimized,
    )


def plain_bytes(*, optimizer_bytes: float = ADAM_BYTES) -> StateBytes:
    """Bytes per trainable parameter in a single process without ZeRO, in fp32.

    The casts of autocast are counted with the activations.
    """
    return StateBytes(weights=4, gradients=4, optimizer=optimizer_bytes, step=0)


def memory_need(size: ModelSize, states: StateBytes, *, gpu: bool, frozen_bytes: float, buckets: int = 0) -> MemoryNeed:
    """Memory of one training process.

    Args:
        gpu: whether gradients and validation can use the memory of freed activations. On CPUs, malloc keeps it in
            small pieces.
        frozen_bytes: bytes per frozen parameter.
        buckets: bytes of DeepSpeed's communication buckets.
    """
    gradients = states.gradients * size.trainable
    # Gradients are allocated while the backward pass frees activations; the optimizer steps after that.
    passes = max(size.activations - gradients, size.backward) if gpu else size.activations
    working = max(passes, states.step * size.trainable + buckets)
    return MemoryNeed(
        weights=states.weights * size.trainable + frozen_bytes * size.frozen,
        gradients=gradients,
        optimizer=states.optimizer * size.trainable,
        working=max(working, size.validation) if gpu else working + size.validation,
        runtime=RUNTIME_BYTES + size.data,
    )


def zero_need(
    size: ModelSize, *, gpu: bool, stage: int, world_size: int, precision: str, offload_optimizer: bool = False
) -> MemoryNeed:
    """Memory of one training process under ZeRO; on a GPU, without the state that is offloaded to the host."""
    states = zero_bytes(stage, world_size, precision, offload_optimizer=offload_optimizer)
    frozen = BYTES[precision] / (world_size if stage >= 3 else 1)
    return memory_need(
        size, states, gpu=gpu, frozen_bytes=frozen, buckets=BYTES[precision] * bucket_elements(size.trainable)
    )


def sampling_need(size: ModelSize) -> float:
    """Memory in bytes of a process that generates a batch of images."""
    return RUNTIME_BYTES + size.pipeline + size.sampling


def encoding_need(size: ModelSize) -> float:
    """Memory in bytes of the process that encodes images and prompts."""
    return RUNTIME_BYTES + size.encoders + size.encoding


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
    gpu: bool,
    available: float | None,
    world_size: int,
    precision: str,
    offload_optimizer: bool = False,
    plain: StateBytes | None = None,
    highest: int = 3,
) -> StageChoice:
    """Choose the lowest ZeRO stage that fits, or the stage that the job sets.

    Args:
        available: memory of one training process in bytes; None if unknown.
        plain: for a process that trains without DeepSpeed.
        highest: the highest stage that the method supports.
    """

    def need(stage: int) -> MemoryNeed:
        if plain is not None:
            return memory_need(size, plain, gpu=gpu, frozen_bytes=BYTES[precision])
        return zero_need(
            size, gpu=gpu, stage=stage, world_size=world_size, precision=precision, offload_optimizer=offload_optimizer
        )

    if requested != "auto":
        chosen = need(int(requested))
        return StageChoice(int(requested), "set by the job", chosen, available is None or chosen.total <= available)
    if available is None:
        return StageChoice(1, "the memory of the workers is unknown", need(1), fits=True)
    highest = highest if world_size > 1 else 1  # a single process has nothing to partition
    stage = next((stage for stage in range(1, highest) if need(stage).total <= available), highest)
    chosen = need(stage)
    fits = chosen.total <= available
    reason = "the lowest that fits" if fits else "the highest, but it does not fit"
    return StageChoice(stage, f"{reason}: {chosen.total / GIB:.1f} of {available / GIB:.1f} GiB", chosen, fits)
