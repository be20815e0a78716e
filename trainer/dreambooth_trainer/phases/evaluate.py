"""Evaluate: draw with the tuned model and with the base, and score both as the paper does (section 4.2)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import JsonValue

from dreambooth_trainer.defaults import BUILTIN_SPRITES
from dreambooth_trainer.drawing import Drawing, draw_all, noise_seed
from dreambooth_trainer.faults import ThresholdError
from dreambooth_trainer.hardware import work_device
from dreambooth_trainer.metrics.prompts import paper_prompts
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.plan import Plan
from dreambooth_trainer.progress import PhaseProgress
from dreambooth_trainer.spec import BaseModelRef
from dreambooth_trainer.store.folder import JobFolder, write_whole
from dreambooth_trainer.store.pictures import PictureStore

# Heavy imports stand in the functions that need them: the driver has no use for them.
if TYPE_CHECKING:
    from dreambooth_trainer.metrics.scores import Scores

# Pictures of the class prompt and of the subject alone that each model draws, for PRES, DIV and the report.
CLASS_PICTURES = 32
SUBJECT_PICTURES = 8
WHICH = ("before", "after")


def evaluation_prompts(plan: Plan) -> list[str]:
    """Templates: the job's, or the paper's 25 for the class, or the list that the built-in base can read."""
    if plan.spec.evaluation.prompts:
        return list(plan.spec.evaluation.prompts)
    if plan.model.id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS

        return list(SPRITES_PROMPTS)
    return paper_prompts(plan.spec.subject.class_)


def pictures_of(context: Context, which: str) -> PictureStore:
    """Where the pictures of one model are."""
    return PictureStore(str(context.folder.pictures.resolve() / context.keys["train"][:16] / which))


def wanted_pictures(plan: Plan, which: str) -> list[Drawing]:
    """What one model draws. Before and after start from the same noise, so that they can be compared.

    Names: p<prompt>-<image>, subject-<image>, class-<image>.
    """
    per_prompt = plan.spec.evaluation.images_per_prompt if plan.spec.evaluation.enabled else 1
    # The base's pictures show what changed, for which one a prompt is enough.
    per_prompt = per_prompt if which == "after" else 1
    drawings = [
        (f"p{number:02d}-{image:02d}", template.replace("{}", plan.subject_noun))
        for number, template in enumerate(evaluation_prompts(plan))
        for image in range(per_prompt)
    ]
    drawings += [(f"subject-{i:02d}", plan.instance_prompt) for i in range(SUBJECT_PICTURES)]
    drawings += [(f"class-{i:02d}", plan.class_prompt) for i in range(CLASS_PICTURES)]
    return [Drawing(name, prompt, noise_seed("evaluate", plan.spec.training.seed, name)) for name, prompt in drawings]


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    return {
        "train": context.keys["train"],
        "evaluation": plan.spec.evaluation.model_dump(mode="json", exclude={"thresholds"}),
        "encoders": [plan.dino, plan.clip],
        "sampler": plan.sampler.model_dump(),
    }


def _outputs(context: Context) -> list[Path]:
    return [context.folder.scores] if context.plan.spec.evaluation.enabled else []


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    plan, style = context.plan, context.style(context.plan.sampler)
    models = {"before": plan.model, "after": BaseModelRef(id=str(context.folder.trained.resolve()))}
    counts = {which: len(wanted_pictures(plan, which)) for which in WHICH}
    progress.total(sum(counts.values()))
    done = 0
    for which in WHICH:
        offset = done
        draw_all(
            context.pool,
            models[which],
            style,
            pictures_of(context, which),
            wanted_pictures(plan, which),
            lambda count, offset=offset: progress.done(offset + count),
        )
        done += counts[which]
    if not plan.spec.evaluation.enabled:
        return {}
    stores = {which: pictures_of(context, which) for which in WHICH}
    scores = context.pool.call(score, plan, context.folder, stores)
    write_whole(context.folder.scores, json.dumps({which: s.model_dump(mode="json") for which, s in scores.items()}))
    after = scores["after"]
    progress.done(done, DINO=after.dino, CLIP_I=after.clip_i, CLIP_T=after.clip_t)
    return {
        "dino": after.dino,
        "clipI": after.clip_i,
        "clipT": after.clip_t,
        "pres": after.pres,
        "div": after.div_class,
    }


def score(plan: Plan, folder: JobFolder, stores: dict[str, PictureStore]) -> dict[str, Scores]:
    """Score what both models drew; runs on a worker, on its GPU if it has one."""
    from dreambooth_trainer.metrics.encoders import load_encoders
    from dreambooth_trainer.metrics.scores import PromptImages, measure

    encoders = load_encoders(plan.dino, plan.clip, work_device())
    real = [Image.open(path) for path in sorted(folder.prepared.glob("*.png"))]
    scores = {}
    for which, store in stores.items():
        names = sorted(drawing.name for drawing in wanted_pictures(plan, which))
        groups = [
            # CLIP has never met the rare token: it is compared with the prompt without it.
            PromptImages(template.replace("{}", plan.spec.subject.class_), _pictures(store, names, f"p{number:02d}-"))
            for number, template in enumerate(evaluation_prompts(plan))
        ]
        scores[which] = measure(encoders, real, groups, _pictures(store, names, "class-"))
    return scores


def check_encoders(plan: Plan) -> None:
    """Load the encoders once before anything else: that they are missing should not come out after the training.

    Raises:
        UserError: they cannot be had.
    """
    if plan.spec.evaluation.enabled and {plan.dino, plan.clip} != {BUILTIN_SPRITES}:
        from dreambooth_trainer.metrics.encoders import load_encoders

        load_encoders(plan.dino, plan.clip)


def check_thresholds(context: Context) -> None:
    """Stop a job whose model scores too low.

    Raises:
        ThresholdError: with one fault for every score below its threshold.
    """
    if context.folder.scores.exists():
        from dreambooth_trainer.metrics.scores import Scores, failed_thresholds

        after = Scores.model_validate(json.loads(context.folder.scores.read_text())["after"])
        faults = failed_thresholds(after, context.plan.spec.evaluation.thresholds)
        if faults:
            raise ThresholdError(faults)


def _pictures(store: PictureStore, names: Sequence[str], prefix: str) -> list[Image.Image]:
    return [store.get(name) for name in names if name.startswith(prefix)]


EVALUATE = Phase("evaluate", _inputs, _outputs, _run)
