"""A plan as text."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, fields

from pydantic import JsonValue
from pydantic.alias_generators import to_camel

from dreambooth_api.hypernetwork import HyperNetwork
from dreambooth_api.model import public_name
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.planning.host_memory import host_bytes
from dreambooth_trainer.planning.image_prompts import PlannedImagePrompts
from dreambooth_trainer.planning.machine_memory import phase_bytes
from dreambooth_trainer.planning.make_plan import PlannedJob
from dreambooth_trainer.planning.memory import GIB
from dreambooth_trainer.planning.plan import COMPILE_MIN_STEPS, Plan


def describe(planned: PlannedJob) -> str:
    """A plan in two lines, printed at the start of a run."""
    plan = planned.plan
    class_images = (
        f"{plan.num_class_images} class images of {_class_prompts(plan)}"
        if plan.spec.uses_class_images
        else f"prior preservation {plan.spec.preservation}"
    )
    head = f"{_images(planned)}, {class_images}, {plan.model.id}"
    if plan.image_prompts is not None:
        method = f"{plan.spec.training.method}, {image_prompts_row(plan.image_prompts)}"
        return f"{head}\n{method}, {plan.precision}, {_workers(planned)}, {plan.resolution} px"
    training = (
        f"{plan.spec.training.method}, {_samples(plan)}, "
        f"learning rate {plan.learning_rate:g}, ZeRO stage {plan.stage_name}, {plan.precision}, {_workers(planned)}, "
        f"{plan.resolution} px"
    )
    return f"{head}\n{training}"


def rows(planned: PlannedJob) -> list[tuple[str, str]]:
    """A plan as (label, value) pairs, printed by `dreambooth plan`."""
    plan = planned.plan
    return [
        ("base model", plan.model.id),
        *_super_resolution(plan),
        ("subject", f"{_images(planned)}, augmentation: {plan.augmentation}"),
        ("prior preservation", preservation_row(plan)),
        ("class images", class_images_row(plan)),
        *_training(plan),
        ("workers", _workers(planned)),
        ("sampling", f"{planned.sampling_processes} process(es), up to {plan.sampling_batch_size} images per batch"),
        *_training_processes(planned),
        *_machine_memory(planned),
        ("published formats", ", ".join(plan.formats)),
        ("evaluation", f"encoders {plan.dino} and {plan.clip}" if plan.spec.evaluation.enabled else "disabled"),
        ("images of models", f"{plan.sampler.steps} steps, guidance scale {plan.sampler.guidance_scale:g}"),
    ]


def image_prompts_row(prompts: PlannedImagePrompts) -> str:
    """The image-prompt adapter of a job that trains nothing."""
    adapter = f"{public_name(prompts.adapter.id)}, {prompts.adapter.weights}"
    return f"IP-Adapter {adapter}, scale {prompts.scale:g}"


def network_row(network: HyperNetwork) -> str:
    """The HyperNetwork of a job."""
    return f"predicted from the images of the subject by the HyperNetwork {public_name(network.id)}"


def _training(plan: Plan) -> list[tuple[str, str]]:
    method, numbers = plan.spec.training.method, f"{plan.resolution} px, {plan.precision}"
    if plan.image_prompts is not None:
        return [("training", f"{method}, {image_prompts_row(plan.image_prompts)}, {numbers}")]
    every = f" and every {plan.checkpoint_every_steps} steps" if plan.checkpoint_every_steps else ""
    return [
        ("training", f"{method}, {_samples(plan)}, learning rate {plan.learning_rate:g}, {numbers}"),
        *([("initial adapter", network_row(plan.hyper_network))] if plan.hyper_network else []),
        ("text encoder", plan.text_encoder_training),
        ("checkpoints", f"every 10 minutes{every}"),
        *_watching(plan),
    ]


def _training_processes(planned: PlannedJob) -> list[tuple[str, str]]:
    if not planned.plan.spec.training.traits.trains:
        return []
    return [
        ("ZeRO stage", _stage(planned)),
        ("compilation", _compilation(planned.plan)),
        ("memory per process", str(planned.choice.need)),
    ]


def _watching(plan: Plan) -> list[tuple[str, str]]:
    """Validation and trackers, if the job has them."""
    training, found = plan.spec.training, list[tuple[str, str]]()
    if (validation := training.validation) is not None:
        images = len(validation.prompts) * len(plan.subjects)
        count = 1 + math.ceil(plan.steps / validation.every_steps)
        text = f"{images} image(s) every {validation.every_steps} steps, {count} times"
        found.append(("validation", f"{text}, {plan.sampler.steps} denoising steps each"))
        if plan.spec.output.select == "Best":
            early = "" if validation.patience is None else f", stops after {validation.patience} without a better step"
            found.append(("published weights", f"of the best step by the scores of validations{early}"))
    if training.trackers:
        found.append(("trackers", ", ".join(training.trackers)))
    return found


def _super_resolution(plan: Plan) -> list[tuple[str, str]]:
    second = plan.super_resolution
    if second is None:
        return []
    change = f"from {second.base_resolution} to {plan.resolution} px, learning rate {second.learning_rate:g}"
    return [("super-resolution", f"{second.model.id}, {change}, as many steps")]


def as_json(planned: PlannedJob) -> dict[str, JsonValue]:
    """A plan for programs, printed by `dreambooth plan -o json`. Memory is in bytes."""
    plan, need, hardware = planned.plan, planned.choice.need, planned.hardware
    memory: dict[str, JsonValue] = {to_camel(field.name): round(getattr(need, field.name)) for field in fields(need)}
    return {
        "name": plan.job.metadata.name,
        **plan.model_dump(mode="json", by_alias=True, exclude={"job", "zero_stage"}),
        "method": plan.spec.training.method,
        "seed": plan.spec.training.seed,
        "imageCounts": list(planned.image_counts),
        "priorPreservation": plan.spec.preservation,
        "priorLossWeight": plan.spec.prior_loss_weight,
        "formats": list(plan.formats),
        "worldSizes": list(plan.world_sizes),
        "samplingProcesses": planned.sampling_processes,
        "zeroStage": {"stage": plan.stage_name, "reason": planned.choice.reason},
        "hardware": {to_camel(name): value for name, value in asdict(hardware).items()},
        "memoryPerProcessBytes": {**memory, "total": round(need.total)},
    }


def _samples(plan: Plan) -> str:
    """Steps, global batch size, and their product: the number of instance images used."""
    return f"{plan.steps} steps x batch size {plan.batch_size} = {plan.samples} samples"


def preservation_row(plan: Plan) -> str:
    """How the prior is preserved."""
    mode, weight, traits = plan.spec.preservation, plan.spec.prior_loss_weight, plan.spec.training.traits
    if weight is None:
        return f"{mode}: {'expect language drift' if traits.changes_weights else 'the weights do not change'}"
    copy = ", with a frozen copy of the trained modules" if traits.weights and mode in ("Prediction", "Bound") else ""
    return f"{mode}, loss weight {weight:g}{copy}"


def class_images_row(plan: Plan) -> str:
    """Class images, and why there are fewer than requested."""
    if not plan.spec.uses_class_images:
        return "none"
    requested, used, sampler = plan.spec.prior_preservation.num_class_images, "", plan.class_image_sampler
    if plan.num_class_images == plan.used_class_images != requested:
        request = "" if requested is None else f"{requested} requested; "
        used = f" ({request}{plan.steps} steps of {plan.batch_size} class images use {plan.used_class_images})"
    scheduler = "" if sampler.scheduler == "Default" else f" of {sampler.scheduler}"
    own = plan.num_own_class_images
    used += f", of which {own} are your own" if own else ""
    return (
        f"{plan.num_class_images} of {_class_prompts(plan)}{used}, {sampler.steps} steps{scheduler}, "
        f"guidance scale {sampler.guidance_scale:g}, sharing {plan.spec.prior_preservation.sharing}"
    )


def _machine_memory(planned: PlannedJob) -> list[tuple[str, str]]:
    """Memory of all processes of a worker with GPUs, or of a job on one machine, by phase."""
    plan, hardware, total = planned.plan, planned.hardware, planned.hardware.total_bytes
    if hardware.host_bytes is not None:
        phases = host_bytes(planned.size, plan, hardware.gpus_per_worker)
        return [("memory per worker", _by_phase(phases, hardware.host_bytes))]
    if total is None:
        return []
    phases = phase_bytes(
        planned.size,
        planned.choice.need,
        sampling_processes=planned.sampling_processes,
        training_processes=plan.world_sizes[1],
    )
    return [("memory by phase", _by_phase(phases, total))]


def _by_phase(phases: Mapping[TrainerPhase, float], available: float) -> str:
    numbers = ", ".join(f"{phase} {size / GIB:.1f}" for phase, size in phases.items())
    return f"{numbers} of {available / GIB:.1f} GiB"


def _stage(planned: PlannedJob) -> str:
    stage = planned.plan.stage_name
    return f"{stage}: {'a single process has nothing to partition' if stage == 'none' else planned.choice.reason}"


def _compilation(plan: Plan) -> str:
    if plan.spec.training.compile == "Never":
        return "none: set by the job"
    rule = f"Auto compiles on a single GPU from {COMPILE_MIN_STEPS} forward passes"
    return f"{'torch.compile' if plan.compiled else 'none'}: {rule}"


def _images(planned: PlannedJob) -> str:
    pairs = zip(planned.image_counts, planned.plan.subjects, strict=True)
    return ", ".join(f"{count} images of {subject.instance_prompt!r}" for count, subject in pairs)


def _class_prompts(plan: Plan) -> str:
    return " and ".join(repr(prompt) for prompt in plan.class_image_counts)


def _workers(planned: PlannedJob) -> str:
    """Workers, their devices, and the world size, which is the number of training processes."""
    plan, hardware = planned.plan, planned.hardware
    low, high = plan.world_sizes
    elastic = plan.spec.cluster.elastic
    workers = f"{elastic.min_workers}-{elastic.max_workers}" if elastic else f"{plan.spec.cluster.workers}"
    device = f"{hardware.gpus_per_worker} x {hardware.device}" if hardware.gpus_per_worker else hardware.device
    return f"{workers} worker(s) with {device}, world size {low if low == high else f'{low}-{high}'}"
