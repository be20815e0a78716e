"""What the report shows of a job, gathered from its folder."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from importlib.metadata import version

from PIL import Image

from dreambooth_trainer.families.base import ADAPTER_FILE
from dreambooth_trainer.metrics.scores import PAPER as PAPER_SCORES
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.class_images import class_image_names, class_image_store
from dreambooth_trainer.phases.evaluate import (
    NUM_CLASS_PROMPT_IMAGES,
    NUM_SUBJECT_IMAGES,
    WHICH,
    evaluation_prompts,
    evaluation_store,
    images_per_prompt,
    load_images,
    read_scores,
)
from dreambooth_trainer.planning.defaults import PAPER
from dreambooth_trainer.report.contents import Comparison, PhaseTime, ReferenceRow, Report, ScoreRow, loading_code
from dreambooth_trainer.report.curves import loss_curves
from dreambooth_trainer.report.scores import score_rows
from dreambooth_trainer.training.messages import Record

MAX_CLASS_IMAGES_SHOWN = 16
PROMPTS_SHOWN = 12


def collect_report(context: Context) -> Report:
    """Everything that the report and the model card show."""
    plan, folder = context.plan, context.folder
    scores, judges = _scores(context)
    store = class_image_store(context)
    there = sorted(store.names().intersection(class_image_names(context)))
    return Report(
        name=plan.job.metadata.name,
        subject_prompt=plan.instance_prompt,
        class_prompt=plan.class_prompt,
        base_model=plan.model.id,
        created=datetime.now(UTC),
        subject_images=tuple(Image.open(path) for path in sorted(folder.prepared.glob("*.png"))),
        subject=_compare(context, plan.instance_prompt, NUM_SUBJECT_IMAGES, NUM_SUBJECT_IMAGES),
        contexts=_contexts(context),
        drift=_compare(context, plan.class_prompt, NUM_CLASS_PROMPT_IMAGES // 2, NUM_CLASS_PROMPT_IMAGES // 2),
        # They may have been cleared since they were encoded.
        class_images=tuple(store.get(name) for name in there[:MAX_CLASS_IMAGES_SHOWN]),
        num_class_images=len(class_image_names(context)),
        scores=scores,
        judges=judges,
        references=_references(context),
        curves_svg=loss_curves([Record(**json.loads(line)) for line in folder.losses.read_text().splitlines()]),
        phases=_phases(context),
        settings=_settings(context),
        versions={name: version(name) for name in ("torch", "diffusers", "transformers", "deepspeed", "ray")},
        loading_code=loading_code(
            str(folder.model), plan.instance_prompt, adapter=(folder.trained / ADAPTER_FILE).exists()
        ),
    )


def _compare(context: Context, prompt: str, before: int, after: int) -> Comparison:
    base, trained = (evaluation_store(context, which) for which in WHICH)
    return Comparison(prompt, tuple(load_images(base, prompt, before)), tuple(load_images(trained, prompt, after)))


def _contexts(context: Context) -> tuple[Comparison, ...]:
    before, after = (images_per_prompt(context.plan, which) for which in WHICH)
    templates = evaluation_prompts(context.plan)
    # Evenly over the list: its neighbours are alike.
    chosen = range(0, len(templates), max(1, len(templates) // PROMPTS_SHOWN))
    return tuple(
        _compare(context, templates[number].replace("{}", context.plan.subject_noun), before, after)
        for number in list(chosen)[:PROMPTS_SHOWN]
    )


def _scores(context: Context) -> tuple[tuple[ScoreRow, ...], str]:
    both = read_scores(context)
    if both is None:
        return (), ""
    return score_rows(both["before"], both["after"]), f"{both['after'].dino_encoder}, {both['after'].clip_encoder}"


def _references(context: Context) -> tuple[ReferenceRow, ...]:
    # Other encoders have other scales.
    if (context.plan.dino, context.plan.clip) != (PAPER.dino, PAPER.clip):
        return ()
    return tuple(ReferenceRow(row.name, row.dino, row.clip_i, row.clip_t) for row in PAPER_SCORES)


def _phases(context: Context) -> tuple[PhaseTime, ...]:
    times: list[PhaseTime] = []
    for name in context.keys:
        path = context.folder.completion_record(name)
        if path.exists():
            content = json.loads(path.read_text())
            note = f"{content['reused']} of {content['wanted']} reused" if name == "class-images" else ""
            times.append(PhaseTime(name, content["seconds"], note))
    return tuple(times)


def _settings(context: Context) -> dict[str, str]:
    plan, training = context.plan, context.plan.spec.training
    return {
        "method": training.method,
        "steps": str(plan.steps),
        "learning rate": f"{plan.learning_rate:g}",
        "batch size": f"{plan.batch_size}",
        "text encoder": f"learned at {plan.text_encoder_learning_rate:g}" if plan.train_text_encoder else "frozen",
        "prior weight": f"{plan.spec.prior_preservation.loss_weight:g}"
        if plan.spec.prior_preservation.enabled
        else "no prior preservation",
        "resolution": f"{plan.resolution} px",
        "precision": plan.precision,
        "ZeRO stage": str(plan.zero_stage),
        "training processes": "-".join(str(size) for size in sorted(set(plan.world_sizes))),
        "seed": str(training.seed),
    }
