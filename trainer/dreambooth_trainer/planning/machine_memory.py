"""Memory of a machine without GPUs in each phase of a job. All processes of the job share it."""

from __future__ import annotations

from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.planning.memory import (
    GIB,
    RUNTIME_BYTES,
    MemoryNeed,
    ModelSize,
    encoding_need,
    sampling_need,
)

# Processes without a model, measured with Stable Diffusion 1.5. Pages that processes share are counted once.
RAY_BYTES = 0.5 * GIB
DRIVER_BYTES = 0.6 * GIB
CONTROLLER_BYTES = 0.42 * GIB
IDLE_WORKER_BYTES = 0.55 * GIB


def phase_bytes(
    size: ModelSize, need: MemoryNeed, *, sampling_processes: int, training_processes: int
) -> dict[TrainerPhase, float]:
    """Bytes in use on a machine that runs the whole job, by phase.

    A sampling process keeps its model until training starts. Ray Train's controller stays until the end of the job.

    Args:
        need: of one training process.
    """
    shared = RAY_BYTES + DRIVER_BYTES
    sampling = sampling_processes * sampling_need(size)
    loaded = RUNTIME_BYTES + size.pipeline
    idle = sampling_processes * IDLE_WORKER_BYTES
    return {
        TrainerPhase.CLASS_IMAGES: shared + sampling,
        TrainerPhase.ENCODE: shared + encoding_need(size) + (sampling_processes - 1) * loaded,
        TrainerPhase.TRAIN: shared + CONTROLLER_BYTES + idle + training_processes * need.total,
        TrainerPhase.EVALUATE: shared + CONTROLLER_BYTES + sampling,
    }
