"""Collects what the report shows from a job's folder alone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.families.base import ADAPTER_FILE
from dreambooth_trainer.metrics.scores import PAPER as PAPER_SCORES
from dreambooth_trainer.metrics.scores import Scores
from dreambooth_trainer.planning.defaults import PAPER
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.report.contents import Comparison, PhaseTime, ReferenceRow, Report, ScoreRow, loading_code
from dreambooth_trainer.report.curves import loss_curves
from dreambooth_trainer.report.scores import score_rows
from dreambooth_trainer.sampling.evaluation_set import (
    NUM_CLASS_PROMPT_IMAGES,
    NUM_SUBJECT_IMAGES,
    WHICH,
    evaluation_prompts,
    images_per_prompt,
    load_images,
)
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion, read_run
from dreambooth_trainer.training.messages import Record

MAX_CLASS_IMAGES_SHOWN = 16
MAX_PROMPTS_SHOWN = 12


@dataclass(frozen=True)
class _Finished:
    """A job's plan, and the completion records of its finished phases by phase."""

    folder: JobFolder
    plan: Plan
    records: Mapping[str, Mapping[str, Any]]

    def images(self, which: str) -> ImageStore:
        """What the base model ("before") or the trained one ("after") generated."""
        return ImageStore(str(self.folder.evaluation_images / self.records["evaluate"]["images"][which]))


def collect_report(folder: JobFolder) -> Report:
    """Everything that the report and the model card show.

    Raises:
        UserError: the folder is not that of a job whose evaluation has finished.
    """
    run = read_run(folder)
    records = {phase: read_completion(folder, run.keys, phase) for phase in run.keys}
    job = _Finished(folder, run.plan, {phase: record for phase, record in records.items() if record is not None})
    if "evaluate" not in job.records:
        rule = "has no finished evaluation"
        raise UserError(
            ValidationIssue("OUT", str(folder.root), rule, "run the job again; it continues where it stopped")
        )
    plan = run.plan
    scores, encoders = _scores(job)
    class_images, num_class_images = _class_images(job)
    return Report(
        name=plan.job.metadata.name,
        subject_prompt=plan.instance_prompt,
        class_prompt=plan.class_prompt,
        base_model=plan.model.id,
        created=datetime.now(UTC),
        subject_images=tuple(Image.open(path) for path in sorted(folder.prepared.glob("*.png"))),
        subject=_compare(job, plan.instance_prompt, NUM_SUBJECT_IMAGES, NUM_SUBJECT_IMAGES),
        contexts=_contexts(job),
        drift=_compare(job, plan.class_prompt, NUM_CLASS_PROMPT_IMAGES // 2, NUM_CLASS_PROMPT_IMAGES // 2),
        class_images=class_images,
        num_class_images=num_class_images,
        scores=scores,
        encoders=encoders,
        references=_references(plan),
        curves_svg=loss_curves([Record(**json.loads(line)) for line in folder.losses.read_text().splitlines()]),
        phases=_phases(job),
        settings=_settings(plan),
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "deepspeed", "ray")},
        loading_code=loading_code(
            str(folder.model), plan.instance_prompt, adapter=(folder.trained / ADAPTER_FILE).exists()
        ),
    )


def _compare(job: _Finished, prompt: str, before: int, after: int) -> Comparison:
    base, trained = (job.images(which) for which in WHICH)
    return Comparison(prompt, tuple(load_images(base, prompt, before)), tuple(load_images(trained, prompt, after)))


def _contexts(job: _Finished) -> tuple[Comparison, ...]:
    before, after = (images_per_prompt(job.plan, which) for which in WHICH)
    templates = evaluation_prompts(job.plan)
    # Evenly over the list: neighbors are alike.
    chosen = range(0, len(templates), max(1, len(templates) // MAX_PROMPTS_SHOWN))
    return tuple(
        _compare(job, templates[number].replace("{}", job.plan.subject_noun), before, after)
        for number in list(chosen)[:MAX_PROMPTS_SHOWN]
    )


def _class_images(job: _Finished) -> tuple[tuple[Image.Image, ...], int]:
    """A sample of the class images, and how many the job trained on."""
    record = job.records["class-images"]
    if not record["store"]:
        return (), 0
    store = ImageStore(record["store"])
    # They may have been deleted since they were encoded.
    there = sorted(store.names())[: min(MAX_CLASS_IMAGES_SHOWN, record["wanted"])]
    return tuple(store.get(name) for name in there), record["wanted"]


def _scores(job: _Finished) -> tuple[tuple[ScoreRow, ...], str]:
    if not job.plan.spec.evaluation.enabled:
        return (), ""
    both = {which: Scores.model_validate(scores) for which, scores in json.loads(job.folder.scores.read_text()).items()}
    return score_rows(both["before"], both["after"]), f"{both['after'].dino_encoder}, {both['after'].clip_encoder}"


def _references(plan: Plan) -> tuple[ReferenceRow, ...]:
    # Other encoders have other scales.
    if (plan.dino, plan.clip) != (PAPER.dino, PAPER.clip):
        return ()
    return tuple(ReferenceRow(row.name, row.dino, row.clip_i, row.clip_t) for row in PAPER_SCORES)


def _phases(job: _Finished) -> tuple[PhaseTime, ...]:
    return tuple(
        PhaseTime(
            phase,
            record["seconds"],
            f"{record['reused']} of {record['wanted']} reused" if phase == "class-images" else "",
        )
        for phase, record in job.records.items()
    )


def _settings(plan: Plan) -> dict[str, str]:
    training = plan.spec.training
    return {
        "method": training.method,
        "steps": str(plan.steps),
        "learning rate": f"{plan.learning_rate:g}",
        "batch size": f"{plan.batch_size}",
        "text encoder": f"trained at {plan.text_encoder_learning_rate:g}" if plan.train_text_encoder else "frozen",
        "prior loss weight": f"{plan.spec.prior_preservation.loss_weight:g}"
        if plan.spec.prior_preservation.enabled
        else "no prior preservation",
        "resolution": f"{plan.resolution} px",
        "precision": plan.precision,
        "ZeRO stage": str(plan.zero_stage),
        "training processes": "-".join(str(size) for size in sorted(set(plan.world_sizes))),
        "seed": str(training.seed),
    }
