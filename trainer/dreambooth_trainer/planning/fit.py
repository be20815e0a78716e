"""Fits a plan into the memory of its workers: chooses the ZeRO stage, or rejects the plan with the numbers."""

from __future__ import annotations

import math
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.memory import GIB, ModelSize, StageChoice, choose_stage, sampling_need
from dreambooth_trainer.planning.model_facts import model_size
from dreambooth_trainer.planning.plan import Plan


def size_of(plan: Plan, base: Path, *, method: str | None = None) -> ModelSize:
    """Size of the plan's model, read from file headers.

    Args:
        method: training method to assume instead of the plan's.
    """
    training = plan.spec.training
    lora = (method or training.method) == "LoRA"
    return model_size(
        base,
        resolution=plan.resolution,
        train_text_encoder=plan.train_text_encoder,
        lora_rank=training.lora.rank if lora else None,
    )


def sampling_processes(plan: Plan, size: ModelSize, hardware: Hardware) -> int:
    """Number of concurrent sampling processes: one per GPU; on CPUs two or more, as far as the memory allows."""
    _, processes = plan.world_sizes
    if hardware.gpus_per_worker or hardware.sampling_bytes is None:
        return processes
    need = sampling_need(size, precision=plan.precision, batch_size=plan.sampling_batch_size)
    machines = math.ceil(plan.spec.cluster.workers / hardware.processes_per_machine)
    return max(1, min(max(processes, 2), machines * int(hardware.sampling_bytes // need)))


def plan_stage(plan: Plan, size: ModelSize, hardware: Hardware) -> StageChoice:
    """Choose the ZeRO stage of a plan, for the minimum number of workers of an elastic job."""
    training, world_size = plan.spec.training, plan.world_sizes[0]
    micro = plan.batch_size // world_size // training.gradient_accumulation_steps
    return choose_stage(
        training.deepspeed.stage,
        size,
        available=hardware.memory_bytes,
        world_size=world_size,
        precision=plan.precision,
        images=micro * (2 if plan.spec.prior_preservation.enabled else 1),
        checkpointing=training.gradient_checkpointing,
        offload_optimizer=training.deepspeed.offload_optimizer and hardware.gpus_per_worker > 0,
    )


def check_memory(plan: Plan, base: Path, size: ModelSize, choice: StageChoice, hardware: Hardware) -> None:
    """Reject a plan that would run out of memory.

    Raises:
        UserError: with the memory that training or sampling needs, the memory available, and the remedy.
    """
    training, sampling = hardware.memory_bytes, hardware.sampling_bytes
    if training is None or sampling is None:
        return
    # Sampling and training do not run at the same time, and one sampling process is enough.
    need = sampling_need(size, precision=plan.precision, batch_size=plan.sampling_batch_size)
    if need > sampling:
        rule = f"generating images needs {need / GIB:.1f} GiB, {sampling / GIB:.1f} GiB are available"
        remedy = "use workers with more memory"
        raise UserError(ValidationIssue("spec.model.id", plan.model.id, f"{rule} ({hardware.device})", remedy))
    if choice.fits:
        return
    rule = (
        f"{plan.spec.training.method} in {plan.precision} at {plan.resolution} px with ZeRO-{choice.stage} needs "
        f"{choice.need} per process, {training / GIB:.1f} GiB are available ({hardware.device})"
    )
    raise UserError(ValidationIssue("spec.training", None, rule, f"set {_remedies(plan, base, hardware)}"))


def _remedies(plan: Plan, base: Path, hardware: Hardware) -> str:
    """Settings that need less memory. A setting that is known to fit comes first."""
    remedies: list[str] = []
    if plan.spec.training.method == "Full":
        lora = plan_stage(plan, size_of(plan, base, method="LoRA"), hardware)
        if lora.fits:
            remedies.append(f"method: LoRA (needs {lora.need.total / GIB:.1f} GiB)")
    if not plan.spec.training.gradient_checkpointing:
        remedies.append("gradientCheckpointing: true")
    if hardware.gpus_per_worker:
        remedies.append("a higher cluster.workers")
    remedies.append("a lower resolution, or use workers with more memory")
    return ", ".join(remedies)
