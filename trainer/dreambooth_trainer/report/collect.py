"""Collects the content of the report from the folder of a job."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.status import TrainerPhase
from dreambooth_api.uris import is_url
from dreambooth_trainer.families.registry import config_folder, family_name
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.planning.describe import image_prompts_row, network_row, preservation_row
from dreambooth_trainer.planning.plan import Plan, PlannedSubject
from dreambooth_trainer.progress.forwarding import external_uri
from dreambooth_trainer.report.contents import (
    Comparison,
    Images,
    PhaseTime,
    PromptRow,
    Report,
    SubjectReport,
    ValidationCourse,
)
from dreambooth_trainer.report.course import collect_course
from dreambooth_trainer.report.curves import loss_curves
from dreambooth_trainer.report.loading import loading_code, tool_files
from dreambooth_trainer.report.scores import (
    encoder_names,
    read_losses,
    read_scores,
    read_selection,
    references,
    score_rows,
    verdict,
)
from dreambooth_trainer.report.verdict import prompt_rows
from dreambooth_trainer.sampling.evaluation_set import (
    MODELS,
    Model,
    evaluation_prompts,
    evenly,
    images_per_prompt,
    load_images,
    num_class_prompt_images,
    num_instance_prompt_images,
)
from dreambooth_trainer.sampling.validation_set import validations_of
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion, read_run

MAX_CLASS_IMAGES_SHOWN = 16
MAX_PROMPTS_SHOWN = 12


@dataclass(frozen=True)
class _FinishedJob:
    """The plan of a job, and the completion records of its finished phases by phase."""

    folder: JobFolder
    plan: Plan
    records: Mapping[TrainerPhase, Mapping[str, Any]]

    def images(self, model: Model) -> ImageStore:
        return ImageStore(str(self.folder.evaluation_images / self.records[TrainerPhase.EVALUATE]["images"][model]))


def collect_report(folder: JobFolder) -> Report:
    """Read everything that the report and the model card show.

    Raises:
        UserError: the folder does not contain a job whose evaluation has finished.
    """
    run = read_run(folder)
    records = {phase: read_completion(folder, run.keys, phase) for phase in run.keys}
    job = _FinishedJob(folder, run.plan, {phase: record for phase, record in records.items() if record is not None})
    if TrainerPhase.EVALUATE not in job.records:
        remedy = "run the job again; it continues where it stopped"
        raise UserError(ValidationIssue("OUT", str(folder.root), "has no finished evaluation", remedy))
    plan = run.plan
    pipeline_class = family_name(folder.trained if plan.image_prompts is None else config_folder(plan.model))
    scores, losses = read_scores(folder, plan), read_losses(folder)
    selected, selection = read_selection(folder, run)
    return Report(
        name=plan.job.metadata.name,
        base_model=plan.model.id,
        pipeline_class=pipeline_class,
        created=datetime.now(UTC),
        subjects=tuple(_subject(job, index, scores) for index in range(len(plan.subjects))),
        scores=() if scores is None else score_rows(*scores),
        findings=verdict(folder, plan, scores, losses, selected),
        encoders="" if scores is None else encoder_names(scores[1]),
        references=references(plan),
        curves_svg=_curves(folder, plan),
        course=_course(folder, plan, run.keys[TrainerPhase.TRAIN], selected),
        selection=selection,
        phases=_phases(job),
        settings=_settings(plan),
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "deepspeed", "ray")},
        loading_code=loading_code(plan, _location(folder, plan), pipeline_class),
        tool_files=tool_files(plan, {path.name for path in folder.model.glob("*")}, pipeline_class),
    )


def _curves(folder: JobFolder, plan: Plan) -> str:
    """The losses of each stage, with the names of the stages if there are several."""
    figures: list[str] = []
    for stage in plan.stages:
        title = "" if len(plan.stages) == 1 else f"{stage.resolution} px"
        figures.append(loss_curves(read_losses(folder.of_stage(stage.stage)), title))
    return "".join(figures)


def _course(folder: JobFolder, plan: Plan, train_key: str, selected: int | None) -> ValidationCourse | None:
    if plan.spec.training.validation is None:
        return None
    return collect_course(plan, validations_of(plan, folder, train_key), selected)


def _subject(job: _FinishedJob, index: int, scores: tuple[Scores, Scores] | None) -> SubjectReport:
    subject = job.plan.subjects[index]
    own = [model.subjects.get(subject.identifier) for model in scores or ()]
    rows = prompt_rows(*(one or model for one, model in zip(own, scores, strict=True))) if scores else ()
    own_class_images, class_images, counts = _class_images(job, subject.class_prompt)
    instance, half = num_instance_prompt_images(job.plan), num_class_prompt_images(job.plan) // 2
    return SubjectReport(
        instance_prompt=subject.instance_prompt,
        class_prompt=subject.class_prompt,
        trigger=subject.noun,
        images=tuple(Image.open(path) for path in job.folder.prepared_of(index)),
        comparison=_compare(job, subject.instance_prompt, instance, instance),
        prompt_comparisons=_prompt_comparisons(job, subject, rows),
        class_comparison=_compare(job, subject.class_prompt, half, half),
        class_images=class_images,
        own_class_images=own_class_images,
        num_class_images=counts[0],
        num_own_class_images=counts[1],
        scores=score_rows(own[0], own[1]) if own and own[1] is not None else (),
        prompts=rows,
    )


def _location(folder: JobFolder, plan: Plan) -> str:
    """Where users find the published model."""
    uri = plan.spec.output.uri
    return uri if uri is not None and is_url(uri) else external_uri(str(folder.model))


def _compare(job: _FinishedJob, prompt: str, before: int, after: int) -> Comparison:
    base, trained = (job.images(model) for model in MODELS)
    return Comparison(prompt, tuple(load_images(base, prompt, before)), tuple(load_images(trained, prompt, after)))


def _prompt_comparisons(
    job: _FinishedJob, subject: PlannedSubject, rows: Sequence[PromptRow]
) -> tuple[Comparison, ...]:
    before, after = (images_per_prompt(job.plan, model) for model in MODELS)
    # Rows have the prompts without the identifier.
    failures = {row.prompt: row.failures for row in rows}
    shown = evenly(evaluation_prompts(job.plan, subject), MAX_PROMPTS_SHOWN)
    return tuple(
        replace(
            _compare(job, fill_template(template, subject.noun), before, after),
            failures=failures.get(fill_template(template, subject.class_), ()),
        )
        for template in shown
    )


def _class_images(job: _FinishedJob, prompt: str) -> tuple[Images, Images, tuple[int, int]]:
    """Some images of a class prompt, the job's own and generated ones.

    Also the number of them used for training, and how many of these are the job's own.
    """
    record = job.records[TrainerPhase.CLASS_IMAGES]
    url: str | None = record["stores"].get(prompt)
    if url is None:
        return (), (), (0, 0)
    count, own = job.plan.class_image_counts[prompt], job.plan.num_own_class_images
    found: list[Images] = []
    for folder, used in ((record.get("own_store"), own), (url, count - own)):
        store = ImageStore(folder) if folder and used else None
        # Class images may have been deleted or damaged since they were encoded.
        names = sorted(name for name in store.names() if name.isdigit())[:used] if store else []
        shown = names[: MAX_CLASS_IMAGES_SHOWN - sum(map(len, found))]
        images = [store.get_or_delete(name, job.plan.resolution) for name in shown] if store else []
        found.append(tuple(image for image in images if image is not None))
    return found[0], found[1], (count, own)


def _phases(job: _FinishedJob) -> tuple[PhaseTime, ...]:
    return tuple(
        PhaseTime(
            phase,
            record["seconds"],
            _class_images_note(record) if phase is TrainerPhase.CLASS_IMAGES else "",
        )
        for phase, record in job.records.items()
    )


def _class_images_note(record: Mapping[str, Any]) -> str:
    own = f", {record['provided']} of the job's own" if record.get("provided") else ""
    return f"{record['reused']} of {record['wanted']} reused{own}"


def _settings(plan: Plan) -> dict[str, str]:
    training, second = plan.spec.training, plan.super_resolution
    stages = {}
    if second is not None:
        stages["super-resolution"] = (
            f"from {second.base_resolution} px, learning rate {second.learning_rate:g}, as many steps"
        )
    if plan.image_prompts is not None:
        return {
            "method": training.method,
            "image prompts": image_prompts_row(plan.image_prompts),
            "resolution": f"{plan.resolution} px",
            "precision": plan.precision,
            "seed": str(training.seed),
        }
    return {
        "method": training.method,
        "steps": str(plan.steps),
        "learning rate": f"{plan.learning_rate:g}",
        "global batch size": f"{plan.batch_size}",
        "samples": f"{plan.samples} instance images",
        **({"initial adapter": network_row(plan.hyper_network)} if plan.hyper_network else {}),
        "text encoder": plan.text_encoder_training,
        "prior preservation": preservation_row(plan),
        "resolution": f"{plan.resolution} px",
        **stages,
        "augmentation": plan.augmentation,
        "precision": plan.precision,
        "ZeRO stage": plan.stage_name,
        "training processes": "-".join(str(size) for size in sorted(set(plan.world_sizes))),
        "seed": str(training.seed),
    }
