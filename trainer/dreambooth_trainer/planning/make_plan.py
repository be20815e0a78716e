"""Plans a job: fills its defaults, chooses the ZeRO stage and checks the memory. Facts are arguments."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from dreambooth_api.job import BaseModelRef, DreamBoothJob
from dreambooth_trainer.cluster.hardware import Hardware
from dreambooth_trainer.planning.fit import check_memory, plan_stage, sampling_processes, size_of
from dreambooth_trainer.planning.memory import StageChoice
from dreambooth_trainer.planning.plan import Plan, fill_defaults


@dataclass(frozen=True)
class JobFacts:
    """What a plan depends on besides the job.

    Attributes:
        model: the base model, with its commit as revision if it is from the Hub.
        model_folder: the model on this machine.
        identifier: the job's, or the rare token that `auto` stands for.
        image_count: number of subject images.
    """

    model: BaseModelRef
    model_folder: Path
    identifier: str
    image_count: int
    hardware: Hardware


@dataclass(frozen=True)
class PlannedJob:
    """A plan, and why it is so.

    Attributes:
        sampling_processes: processes that generate images at the same time.
    """

    plan: Plan
    image_count: int
    hardware: Hardware
    choice: StageChoice
    sampling_processes: int


def make_plan(job: DreamBoothJob, facts: JobFacts) -> PlannedJob:
    """Fill every default, choose the ZeRO stage, and check that the plan fits into the workers' memory.

    Raises:
        UserError: the batch cannot be split over the workers, or the memory does not suffice.
    """
    hardware = facts.hardware
    draft = fill_defaults(
        job,
        image_count=facts.image_count,
        identifier=facts.identifier,
        zero_stage=1,
        precision="bf16" if hardware.bf16 else "fp32",
        gpus_per_worker=hardware.gpus_per_worker,
    ).model_copy(update={"model": facts.model})
    size = size_of(draft, facts.model_folder)
    choice = plan_stage(draft, size, hardware)
    check_memory(draft, facts.model_folder, size, choice, hardware)
    plan = draft.model_copy(update={"zero_stage": choice.stage})
    return PlannedJob(plan, facts.image_count, hardware, choice, sampling_processes(draft, size, hardware))
