"""A plan in words."""

from __future__ import annotations

from dreambooth_trainer.families.registry import local_folder
from dreambooth_trainer.inspection import model_size
from dreambooth_trainer.memory import GIB, MemoryNeed, memory_need
from dreambooth_trainer.runner import Opened


def describe(opened: Opened) -> str:
    """What a run is about to do, in two lines."""
    plan = opened.plan
    priors = (
        f"{plan.prior_count} class images of {plan.class_prompt!r}" if plan.spec.priors.enabled else "no class images"
    )
    head = f"{len(opened.images)} images of {plan.instance_prompt!r}, {priors}, {plan.model.id}"
    course = (
        f"{plan.steps} steps of {plan.batch_size} at {plan.learning_rate:g}, {plan.spec.training.method}, "
        f"ZeRO {plan.zero_stage}, {plan.precision}, {plan.spec.cluster.workers} worker(s), {plan.resolution} px"
    )
    return "\n".join([head, course, *(f"note: {warning}" for warning in opened.warnings)])


def need_of(opened: Opened) -> MemoryNeed:
    """Memory of one worker in training."""
    plan = opened.plan
    training, workers = plan.spec.training, plan.spec.cluster.workers
    size = model_size(
        local_folder(plan.model),
        resolution=plan.resolution,
        train_text_encoder=plan.train_text_encoder,
        lora_rank=training.lora.rank if training.method == "LoRA" else None,
    )
    micro = plan.batch_size // workers // training.gradient_accumulation_steps
    return memory_need(
        size,
        stage=plan.zero_stage,
        workers=workers,
        precision=plan.precision,
        images=micro * (2 if plan.spec.priors.enabled else 1),
        checkpointing=training.gradient_checkpointing,
    )


def rows(opened: Opened) -> list[tuple[str, str]]:
    """A plan as label and value, for `dreambooth plan`."""
    plan, need = opened.plan, need_of(opened)
    prior = plan.prior_sampler
    gib = ", ".join(
        f"{part} {getattr(need, part) / GIB:.3g}" for part in ("weights", "gradients", "optimizer", "activations")
    )
    return [
        ("base model", plan.model.id),
        ("subject", f"{len(opened.images)} images, {plan.instance_prompt!r}"),
        (
            "class images",
            f"{plan.prior_count} of {plan.class_prompt!r}, {prior.steps} steps at guidance {prior.guidance_scale:g}, "
            f"shared by {plan.spec.priors.sharing.lower()}"
            if plan.spec.priors.enabled
            else "none: expect language drift",
        ),
        (
            "training",
            f"{plan.spec.training.method}, {plan.steps} steps of {plan.batch_size} images at {plan.learning_rate:g}, "
            f"{plan.resolution} px, {plan.precision}",
        ),
        ("text encoder", f"learns at {plan.text_encoder_learning_rate:g}" if plan.train_text_encoder else "frozen"),
        ("checkpoints", f"every {plan.checkpoint_every_steps} steps"),
        ("workers", f"{plan.spec.cluster.workers}"),
        ("ZeRO stage", f"{plan.zero_stage}: {opened.why_stage}"),
        ("memory a worker", f"{need.total / GIB:.3g} GiB ({gib}; activations are an estimate)"),
        ("judged by", f"{plan.dino} and {plan.clip}" if plan.spec.evaluation.enabled else "nobody"),
    ]
