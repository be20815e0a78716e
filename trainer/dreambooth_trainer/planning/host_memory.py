"""Memory of a machine or pod with GPUs, outside the GPUs, in each phase of a job.

All processes of a worker load the model on the CPU at the same time, before they move it to their GPUs.
"""

from __future__ import annotations

import math

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.hardware import SHARED_NODE_BYTES, Hardware
from dreambooth_trainer.planning.memory import BYTES, GIB, OPTIMIZER_BYTES, RUNTIME_BYTES, ModelSize
from dreambooth_trainer.planning.plan import Plan


def host_bytes(size: ModelSize, plan: Plan, processes: int) -> dict[TrainerPhase, float]:
    """Bytes in use at the peak of each phase.

    Args:
        processes: processes that share the memory, one per GPU.
    """
    loading = {
        TrainerPhase.CLASS_IMAGES: size.pipeline,
        TrainerPhase.ENCODE: size.encoders,
        TrainerPhase.TRAIN: _training_bytes(size, plan),
        TrainerPhase.EVALUATE: size.pipeline,
    }
    needs = {phase: processes * (RUNTIME_BYTES + one) for phase, one in loading.items()}
    # One process assembles the published model.
    assembly = RUNTIME_BYTES + size.assembled
    needs[TrainerPhase.TRAIN] = max(needs[TrainerPhase.TRAIN], assembly)
    return {phase: SHARED_NODE_BYTES + need for phase, need in needs.items()}


def _training_bytes(size: ModelSize, plan: Plan) -> float:
    """Bytes of one training process: the weights, and what DeepSpeed adds while it still needs them."""
    world_size = plan.world_sizes[0]
    if not plan.needs_deepspeed(world_size):
        return size.loaded + size.validators
    # DeepSpeed casts the weights before it moves them. The optimizer's master weights are set from the fp32 weights.
    cast = 0 if plan.precision == "fp32" else BYTES[plan.precision] * size.trainable
    offloaded = plan.spec.training.deepspeed.offload_optimizer
    optimizer = OPTIMIZER_BYTES * size.trainable / world_size if offloaded else 0
    return size.loaded + size.validators + max(cast, optimizer)


def check_host_memory(plan: Plan, size: ModelSize, hardware: Hardware) -> None:
    """Reject a plan for workers with GPUs and too little memory of their own.

    Raises:
        UserError: with the memory that a phase needs, the memory available, and the memory to set.
    """
    available = hardware.host_bytes
    if available is None:
        return
    phase, need = max(host_bytes(size, plan, hardware.gpus_per_worker).items(), key=lambda item: item[1])
    if need <= available:
        return
    rule = (
        f"{phase} needs {need / GIB:.1f} GiB of memory in each worker with {hardware.gpus_per_worker} GPUs, "
        f"{available / GIB:.1f} GiB are available"
    )
    remedy = (
        f"set {math.ceil(need / GIB)}Gi, or increase pods.worker.memory in the runtime, or use fewer GPUs per worker"
    )
    value = plan.spec.cluster.resources.memory
    raise UserError(ValidationIssue("spec.cluster.resources.memory", value, rule, remedy))
