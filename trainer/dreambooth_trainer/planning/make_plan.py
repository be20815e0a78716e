"""Plans a job: resolves its defaults, chooses the ZeRO stage and checks the memory."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_api.job import DreamBoothJob
from dreambooth_api.model import BaseModelRef
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.fit import (
    Measure,
    check_memory,
    check_stage,
    plan_stage,
    sampling_processes,
    size_of,
    with_sampling_batch,
)
from dreambooth_trainer.planning.host_memory import check_host_memory
from dreambooth_trainer.planning.memory import ModelSize, StageChoice
from dreambooth_trainer.planning.model_facts import check_model, is_flow_matching, is_pixel_space, native_resolution
from dreambooth_trainer.planning.plan import Plan, fill_defaults
from dreambooth_trainer.planning.precision import check_number_formats, default_precision
from dreambooth_trainer.planning.sampling_facts import recommended_sampling


@dataclass(frozen=True)
class JobFacts:
    """Inputs of a plan that are not in the job.

    Attributes:
        model: the base model; if it is on the Hub, its revision is a commit.
        model_folder: local folder of the model.
        identifiers: of each subject: the job's, or the rare token selected for `auto`.
        image_counts: number of images of each subject.
        own_class_images: number of images of `priorPreservation.images`.
    """

    model: BaseModelRef
    model_folder: Path
    identifiers: tuple[str, ...]
    image_counts: tuple[int, ...]
    hardware: Hardware
    own_class_images: int = 0


@dataclass(frozen=True)
class PlannedJob:
    """A plan with the facts and the choices behind it.

    Attributes:
        image_counts: number of images of each subject.
        size: parameters of the model, and memory of its activations.
        choice: the ZeRO stage, the reason for it, and the memory it needs.
        sampling_processes: number of concurrent sampling processes.
    """

    plan: Plan
    image_counts: tuple[int, ...]
    hardware: Hardware
    size: ModelSize
    choice: StageChoice
    sampling_processes: int


def with_own_class_images(plan: Plan, count: int) -> Plan:
    """The plan of a job that provides `count` class images. numClassImages defaults to at least their number."""
    if not plan.spec.uses_class_images:
        return plan
    total = plan.num_class_images
    if plan.spec.prior_preservation.num_class_images is None:
        total = max(total, min(count, plan.used_class_images))
    return plan.model_copy(update={"num_class_images": total, "num_own_class_images": min(count, total)})


def draft_plan(job: DreamBoothJob, facts: JobFacts) -> Plan:
    """Resolve all defaults. `make_plan` chooses the ZeRO stage and the batch of image generation.

    Raises:
        UserError: the batch cannot be split across the workers, or the model's configuration or a number format is not
            supported.
    """
    hardware = facts.hardware
    check_model(facts.model_folder, job.spec)
    draft = fill_defaults(
        job,
        image_count=sum(facts.image_counts),
        identifiers=facts.identifiers,
        zero_stage=1,
        precision=default_precision(gpu=hardware.gpus_per_worker > 0, bf16=hardware.bf16),
        gpus_per_worker=hardware.gpus_per_worker,
        native_resolution=native_resolution(facts.model_folder),
        flow_matching=is_flow_matching(facts.model_folder),
        pixel_space=is_pixel_space(facts.model_folder),
        sampling=recommended_sampling(facts.model_folder),
    ).with_model(facts.model)
    draft = with_own_class_images(draft, facts.own_class_images)
    check_number_formats(draft)
    check_stage(draft)
    return draft


def make_plan(draft: Plan, facts: JobFacts, measure: Measure) -> PlannedJob:
    """Choose the ZeRO stage, and check that the plan fits into the workers' memory.

    Args:
        draft: result of `draft_plan`.
        measure: counts the memory of the model for a draft of the plan.

    Raises:
        UserError: the plan needs more memory than available.
    """
    hardware = facts.hardware
    draft = with_sampling_batch(draft, hardware, measure)
    size = size_of(draft, measure)
    choice = plan_stage(draft, size, hardware)
    check_memory(draft, size, choice, hardware, measure)
    check_host_memory(draft, size, hardware)
    plan = draft.model_copy(update={"zero_stage": choice.stage})
    return PlannedJob(plan, facts.image_counts, hardware, size, choice, sampling_processes(draft, size, hardware))
