"""Fits a plan into the memory of its workers: chooses the ZeRO stage, or rejects the plan with the numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.memory import (
    ADAM_8BIT_BYTES,
    ADAM_BYTES,
    GIB,
    ModelSize,
    StageChoice,
    StateBytes,
    choose_stage,
    encoding_need,
    plain_bytes,
    sampling_need,
)
from dreambooth_trainer.planning.plan import Plan

# A larger batch is hardly faster. It takes longer to repeat if its worker is lost, and fewer workers get one.
MAX_SAMPLING_BATCH = 32
SETTINGS = {"method": "method: LoRA", "gradient_checkpointing": "gradientCheckpointing: true"}
Measure = Callable[[Plan, int], ModelSize]
"""Sizes the model of a plan for a number of images per micro-batch, including class images."""


def size_of(plan: Plan, measure: Measure) -> ModelSize:
    """Size of a plan's model for the micro-batch of one process.

    Of several stages, one is trained at a time: that which needs most memory counts. All of them generate images.
    """
    micro = plan.batch_size // plan.world_sizes[0] // plan.spec.training.gradient_accumulation_steps
    sizes = [measure(stage, micro * (2 if plan.spec.has_class_examples else 1)) for stage in plan.stages]
    if len(sizes) == 1:
        return sizes[0]
    unlimited = Hardware(plan.gpus_per_worker, "", None, bf16=True)
    largest = max(sizes, key=lambda size: plan_stage(plan, size, unlimited).need.total)
    return replace(
        largest,
        pipeline=sum(size.pipeline for size in sizes),
        assembled=max(size.assembled for size in sizes),
        encoders=max(size.encoders for size in sizes),
        sampling=max(size.sampling for size in sizes),
        encoding=max(size.encoding for size in sizes),
        validators=max(size.validators for size in sizes),
        validation=max(size.validation for size in sizes),
    )


def with_sampling_batch(plan: Plan, hardware: Hardware, measure: Measure) -> Plan:
    """The plan with the largest batch for image generation that fits into memory: on a GPU up to MAX_SAMPLING_BATCH.

    On CPUs, a batch larger than the default is not faster and leaves less memory for other processes.
    """
    available, batch = hardware.sampling_bytes, plan.sampling_batch_size
    if available is None:
        return plan
    if hardware.gpus_per_worker:
        batch = MAX_SAMPLING_BATCH
    while True:
        planned = plan.model_copy(update={"sampling_batch_size": batch})
        need = sampling_need(size_of(planned, measure))
        if batch == 1 or need <= available:
            return planned
        batch //= 2


def sampling_processes(plan: Plan, size: ModelSize, hardware: Hardware) -> int:
    """Number of concurrent sampling processes: one per GPU; on CPUs two or more, as far as the memory allows."""
    _, processes = plan.world_sizes
    if hardware.gpus_per_worker or hardware.sampling_bytes is None:
        return processes
    need = sampling_need(size)
    machines = math.ceil(plan.spec.cluster.workers / hardware.processes_per_machine)
    return max(1, min(max(processes, 2), machines * int(hardware.sampling_bytes // need)))


def plan_stage(plan: Plan, size: ModelSize, hardware: Hardware) -> StageChoice:
    """Choose the ZeRO stage of a plan, for the minimum number of workers of an elastic job."""
    training, world_size = plan.spec.training, plan.world_sizes[0]
    return choose_stage(
        training.deepspeed.stage,
        size,
        gpu=hardware.gpus_per_worker > 0,
        available=hardware.memory_bytes,
        world_size=world_size,
        precision=plan.precision,
        offload_optimizer=training.deepspeed.offload_optimizer and hardware.gpus_per_worker > 0,
        plain=None if plan.needs_deepspeed(world_size) else _plain_states(plan),
        highest=training.traits.max_zero_stage,
    )


def check_stage(plan: Plan) -> None:
    """Reject a ZeRO stage that the method cannot be trained with.

    Raises:
        UserError: the job sets such a stage.
    """
    training = plan.spec.training
    highest, stage = training.traits.max_zero_stage, training.deepspeed.stage
    if stage != "auto" and int(stage) > highest:
        rule, remedy = f"is not supported with method {training.method}", f"set {highest}, or method: LoRA"
        raise UserError(ValidationIssue("spec.training.deepspeed.stage", stage, rule, remedy))


def _plain_states(plan: Plan) -> StateBytes:
    adam = ADAM_8BIT_BYTES if plan.spec.training.optimizer == "AdamW8bit" else ADAM_BYTES
    return plain_bytes(optimizer_bytes=adam)


def check_memory(plan: Plan, size: ModelSize, choice: StageChoice, hardware: Hardware, measure: Measure) -> None:
    """Reject a plan that would run out of memory.

    Raises:
        UserError: with the memory that training, sampling or encoding needs, the memory available, and the remedy.
    """
    training, other = hardware.memory_bytes, hardware.sampling_bytes
    if training is None or other is None:
        return
    # The phases do not run at the same time, and one process is enough for sampling and encoding.
    needs = {
        "generating": sampling_need(size),
        "encoding": encoding_need(size),
    }
    for activity, need in needs.items():
        if need > other:
            rule = f"{activity} images needs {need / GIB:.1f} GiB, {other / GIB:.1f} GiB are available"
            remedy = "set a lower training.resolution, or use workers with more memory"
            raise UserError(ValidationIssue("spec.model.id", plan.model.id, f"{rule} ({hardware.device})", remedy))
    if choice.fits:
        return
    zero = f" with ZeRO-{choice.stage}" if plan.needs_deepspeed(plan.world_sizes[0]) else ""
    rule = (
        f"{plan.spec.training.method} in {plan.precision} at {plan.resolution} px{zero} needs "
        f"{choice.need} per process, {training / GIB:.1f} GiB are available ({hardware.device})"
    )
    raise UserError(ValidationIssue("spec.training", None, rule, f"set {_remedies(plan, hardware, measure)}"))


def _remedies(plan: Plan, hardware: Hardware, measure: Measure) -> str:
    """Settings that need less memory: those that are known to fit, each alone or both, then those that may fit."""
    lora: dict[str, object] = {"method": "LoRA"} if plan.spec.training.traits.weights else {}
    checkpointing: dict[str, object] = (
        {} if plan.spec.training.gradient_checkpointing else {"gradient_checkpointing": True}
    )
    remedies: list[str] = []
    for values in (lora, checkpointing, {**lora, **checkpointing} if lora and checkpointing else {}):
        if not values or (len(values) == 2 and remedies):
            continue
        changed = _with_training(plan, values)
        choice = plan_stage(changed, size_of(changed, measure), hardware)
        if choice.fits:
            settings = ", ".join(SETTINGS[name] for name in values)
            remedies.append(f"training: {{{settings}}} (needs {choice.need.total / GIB:.1f} GiB)")
    if hardware.gpus_per_worker:
        remedies.append("a higher cluster.workers")
    remedies.append("a lower resolution, or use workers with more memory")
    return ", ".join(remedies)


def _with_training(plan: Plan, values: Mapping[str, object]) -> Plan:
    spec = plan.spec.model_copy(update={"training": plan.spec.training.model_copy(update=values)})
    train_text_encoder = plan.train_text_encoder and (
        spec.training.traits.weights or spec.training.text_encoder.train is True
    )
    job = plan.job.model_copy(update={"spec": spec})
    return plan.model_copy(update={"job": job, "train_text_encoder": train_text_encoder})
