"""A plan as text."""

from __future__ import annotations

from dreambooth_trainer.planning.make_plan import PlannedJob


def describe(planned: PlannedJob) -> str:
    """What a run will do, in two lines."""
    plan = planned.plan
    class_images = (
        f"{plan.num_class_images} class images of {plan.class_prompt!r}"
        if plan.spec.prior_preservation.enabled
        else "no class images"
    )
    head = f"{planned.image_count} images of {plan.instance_prompt!r}, {class_images}, {plan.model.id}"
    course = (
        f"{plan.steps} steps of {plan.batch_size} at {plan.learning_rate:g}, {plan.spec.training.method}, "
        f"ZeRO {plan.zero_stage}, {plan.precision}, {_workers(planned)}, {plan.resolution} px"
    )
    return f"{head}\n{course}"


def rows(planned: PlannedJob) -> list[tuple[str, str]]:
    """A plan as label and value, for `dreambooth plan`."""
    plan, prior = planned.plan, planned.plan.class_image_sampler
    return [
        ("base model", plan.model.id),
        ("subject", f"{planned.image_count} images, {plan.instance_prompt!r}"),
        (
            "class images",
            f"{plan.num_class_images} of {plan.class_prompt!r}, {prior.steps} steps, "
            f"guidance {prior.guidance_scale:g}, shared by {plan.spec.prior_preservation.sharing.lower()}"
            if plan.spec.prior_preservation.enabled
            else "none: expect language drift",
        ),
        (
            "training",
            f"{plan.spec.training.method}, {plan.steps} steps of {plan.batch_size} images at {plan.learning_rate:g}, "
            f"{plan.resolution} px, {plan.precision}",
        ),
        ("text encoder", f"learns at {plan.text_encoder_learning_rate:g}" if plan.train_text_encoder else "frozen"),
        ("checkpoints", f"every {plan.checkpoint_every_steps} steps"),
        ("workers", _workers(planned)),
        ("ZeRO stage", f"{plan.zero_stage}: {planned.choice.why}"),
        ("memory per process", f"{planned.choice.need}; activations are an estimate"),
        ("judged by", f"{plan.dino} and {plan.clip}" if plan.spec.evaluation.enabled else "nobody"),
    ]


def _workers(planned: PlannedJob) -> str:
    """Workers, their devices, and the world size: the number of training processes."""
    plan, hardware = planned.plan, planned.hardware
    low, high = plan.world_sizes
    elastic = plan.spec.cluster.elastic
    workers = f"{elastic.min_workers}-{elastic.max_workers}" if elastic else f"{plan.spec.cluster.workers}"
    device = f"{hardware.gpus_per_worker} x {hardware.device}" if hardware.gpus_per_worker else hardware.device
    return f"{workers} worker(s) with {device}, world size {low if low == high else f'{low}-{high}'}"
