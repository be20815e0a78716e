"""Rows of the report's score table, and everything else that the report shows of an evaluation."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace

from dreambooth_api.metrics import METRICS
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.metrics.scores import PAPER, Scores, comparable_with_paper
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.report.contents import Finding, ReferenceRow, ScoreRow
from dreambooth_trainer.report.verdict import Course, findings, loss_finding, normal_ranges
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.run_record import RunRecord, read_completion, read_run
from dreambooth_trainer.training.messages import StepRecord


def score_rows(before: Scores | None, after: Scores) -> tuple[ScoreRow, ...]:
    """A row for each metric of the trained model.

    Args:
        before: scores of the base model.
        after: scores of the trained model.
    """
    ranges = {} if before is None else normal_ranges(before, after)
    return tuple(
        ScoreRow(
            name=metric.label,
            meaning=metric.meaning,
            before=None if before is None else before.values.get(metric.name),
            after=after.values[metric.name],
            real_images=after.real_images.get(metric.name),
            normal=ranges.get(metric.name),
        )
        for metric in METRICS
        if metric.name in after.values
    )


def read_scores(folder: JobFolder, plan: Plan) -> tuple[Scores, Scores] | None:
    """The scores before and after training; None if the evaluation is disabled."""
    if not plan.spec.evaluation.enabled:
        return None
    content = json.loads(folder.scores.read_text())
    return Scores.model_validate(content["before"]), Scores.model_validate(content["after"])


def read_losses(folder: JobFolder) -> list[StepRecord]:
    """The losses of each step."""
    return [StepRecord(**json.loads(line)) for line in folder.losses.read_text().splitlines()]


def read_verdict(folder: JobFolder) -> tuple[Finding, ...]:
    """The findings about a job whose evaluation has finished.

    Raises:
        UserError: the folder is not that of a job.
    """
    run = read_run(folder)
    selected, _ = read_selection(folder, run)
    return verdict(folder, run.plan, read_scores(folder, run.plan), read_losses(folder), selected)


def read_selection(folder: JobFolder, run: RunRecord) -> tuple[int | None, str]:
    """The step that was selected, and why.

    The step is None if the weights of the last step are published. The reason is then empty if the job asks for them.
    """
    record = read_completion(folder, run.keys, TrainerPhase.TRAIN) or {}
    step = record.get("selectedStep")
    return step if isinstance(step, int) else None, str(record.get("selection", ""))


def verdict(
    folder: JobFolder,
    plan: Plan,
    scores: tuple[Scores, Scores] | None,
    losses: Sequence[StepRecord],
    selected: int | None = None,
) -> tuple[Finding, ...]:
    """The findings about each subject, problems first.

    Args:
        selected: the step whose weights are published, if it was selected by the scores. Later losses do not count.
    """
    prior = plan.spec.prior_loss_weight
    course = Course(
        images=0,
        steps=selected or plan.steps,
        learning_rate=plan.learning_rate,
        prior_loss_weight=prior,
        changes_weights=plan.spec.training.traits.changes_weights,
        losses=[record.instance_loss for record in losses[:selected]],
    )
    found, several = [loss_finding(course)], len(plan.subjects) > 1
    for stage in plan.stages[1:]:
        later = [record.instance_loss for record in read_losses(folder.of_stage(stage.stage))]
        found.append(loss_finding(replace(course, learning_rate=stage.learning_rate, losses=later)))
    for index, subject in enumerate(plan.subjects):
        before, after = scores if scores is not None else (None, None)
        if several and before is not None and after is not None:
            before, after = before.subjects[subject.identifier], after.subjects[subject.identifier]
        own = replace(course, images=len(folder.photos_of(index)))
        found += findings(before, after, own, subject.instance_prompt if several else "")
    return tuple(sorted(filter(None, found), key=lambda finding: finding.normal))


def encoder_names(scores: Scores) -> str:
    """Names of the networks used for scoring."""
    lpips = f"LPIPS ({scores.lpips_network})" if scores.lpips_network else scores.without_lpips
    return "; ".join(name for name in (scores.dino_encoder, scores.clip_encoder, lpips) if name)


def references(plan: Plan) -> tuple[ReferenceRow, ...]:
    """The results of the paper, if the scores are comparable with them."""
    if not comparable_with_paper(plan.dino, plan.clip):
        return ()
    return tuple(ReferenceRow(row.name, row.dino, row.clip_i, row.clip_t) for row in PAPER)
