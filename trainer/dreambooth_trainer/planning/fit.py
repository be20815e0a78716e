"""Whether a plan fits into the memory of its workers: the ZeRO stage, or an error with numbers."""

from __future__ import annotations

from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.memory import GIB, ModelSize, StageChoice, choose_stage, sampling_need
from dreambooth_trainer.planning.model_facts import model_size
from dreambooth_trainer.planning.plan import Plan


def size_of(plan: Plan, base: Path, *, method: str | None = None) -> ModelSize:
    """Counts of the plan's weights, read from headers. `method` replaces the plan's."""
    training = plan.spec.training
    lora = (method or training.method) == "LoRA"
    return model_size(
        base,
        resolution=plan.resolution,
        train_text_encoder=plan.train_text_encoder,
        lora_rank=training.lora.rank if lora else None,
    )


def sampling_processes(plan: Plan, size: ModelSize, hardware: Hardware) -> int:
    """How many processes generate images at a time: one per GPU; on CPUs at least two, if their memory suffices."""
    _, processes = plan.world_sizes
    if hardware.gpus_per_worker or hardware.memory_bytes is None:
        return processes
    need = sampling_need(size, precision=plan.precision, batch_size=plan.sampling_batch_size)
    return max(1, min(max(processes, 2), int(hardware.memory_bytes * plan.spec.cluster.workers // need)))


def plan_stage(plan: Plan, size: ModelSize, hardware: Hardware) -> StageChoice:
    """The ZeRO stage of a plan, chosen for the fewest workers that an elastic job may have."""
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
    """Refuse a plan that would run out of memory.

    Raises:
        UserError: with what training or sampling needs, what there is, and what to change.
    """
    available = hardware.memory_bytes
    if available is None:
        return
    there = f"{available / GIB:.1f} GiB are available per process ({hardware.device})"
    sampling = sampling_need(size, precision=plan.precision, batch_size=plan.sampling_batch_size)
    if sampling > available:
        rule = f"generating images with it needs {sampling / GIB:.1f} GiB, {there}"
        raise UserError(ValidationIssue("spec.model.id", plan.model.id, rule, "use workers with more memory"))
    if choice.fits:
        return
    method = plan.spec.training.method
    rule = f"{method} in {plan.precision} at {plan.resolution} px with ZeRO-{choice.stage} needs {choice.need}, {there}"
    raise UserError(ValidationIssue("spec.training", None, rule, f"write {_remedies(plan, base, hardware)}"))


def _remedies(plan: Plan, base: Path, hardware: Hardware) -> str:
    """Settings that need less memory, those that are known to fit first."""
    remedies: list[str] = []
    if plan.spec.training.method == "Full":
        lora = plan_stage(plan, size_of(plan, base, method="LoRA"), hardware)
        if lora.fits:
            remedies.append(f"method: LoRA (needs {lora.need.total / GIB:.1f} GiB)")
    if not plan.spec.training.gradient_checkpointing:
        remedies.append("gradientCheckpointing: true")
    if hardware.gpus_per_worker:
        remedies.append("more cluster.workers")
    remedies.append("a smaller resolution, or use workers with more memory")
    return ", ".join(remedies)
