"""Evaluate: draw with the tuned model and with the base, and score both as the paper does (section 4.2)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import JsonValue

from dreambooth_api.errors import ThresholdError
from dreambooth_api.job import BaseModelRef
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.planning.plan import Plan, fingerprint
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.evaluation_set import (
    NUM_CLASS_PROMPT_IMAGES,
    WHICH,
    evaluation_prompts,
    image_requests,
    images_per_prompt,
    load_images,
)
from dreambooth_trainer.sampling.generate import generate_images
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.image_store import ImageStore

# Heavy imports stand in the functions that need them: the driver has no use for them.
if TYPE_CHECKING:
    from dreambooth_trainer.metrics.scores import Scores


def evaluation_store(context: Context, which: str) -> ImageStore:
    """Where the pictures of one model are: a folder for all that changes a picture besides its prompt and number."""
    plan = context.plan
    key = fingerprint(
        {
            "model": context.base_digest if which == "before" else context.keys["train"],
            "sampler": plan.sampler.model_dump(),
            "resolution": plan.resolution,
            "precision": plan.precision,
            "seed": plan.spec.training.seed,
        }
    )
    return ImageStore(str(context.folder.evaluation_images.resolve() / key[:16] / which))


def read_scores(context: Context) -> dict[str, Scores] | None:
    """The scores of both models; None for a job without an evaluation, whatever an earlier run has left."""
    if not context.plan.spec.evaluation.enabled:
        return None
    from dreambooth_trainer.metrics.scores import Scores

    both = json.loads(context.folder.scores.read_text())
    return {which: Scores.model_validate(scores) for which, scores in both.items()}


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    pictures: JsonValue = {
        which: [evaluation_store(context, which).url.rsplit("/", 2)[1], [d.name for d in image_requests(plan, which)]]
        for which in WHICH
    }
    if not plan.spec.evaluation.enabled:
        return {"train": context.keys["train"], "pictures": pictures}
    return {
        "train": context.keys["train"],
        "pictures": pictures,
        "prompts": [[_scored_text(plan, template), template] for template in evaluation_prompts(plan)],
        "class_prompt": plan.class_prompt,
        "encoders": [plan.dino, plan.clip],
    }


def _complete(context: Context) -> bool:
    if context.plan.spec.evaluation.enabled and not context.folder.scores.exists():
        return False
    wanted = {which: {drawing.name for drawing in image_requests(context.plan, which)} for which in WHICH}
    return all(names <= evaluation_store(context, which).names() for which, names in wanted.items())


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    plan, style = context.plan, context.style(context.plan.sampler)
    models = {"before": plan.model, "after": BaseModelRef(id=str(context.folder.trained.resolve()))}
    counts = {which: len(image_requests(plan, which)) for which in WHICH}
    progress.total(sum(counts.values()))
    done = 0
    for which in WHICH:
        offset = done
        generate_images(
            context.pool,
            models[which],
            style,
            evaluation_store(context, which),
            image_requests(plan, which),
            lambda count, offset=offset: progress.done(offset + count),
        )
        done += counts[which]
    images: JsonValue = {
        which: evaluation_store(context, which).url.removeprefix(f"{context.folder.evaluation_images.resolve()}/")
        for which in WHICH
    }
    if not plan.spec.evaluation.enabled:
        return {"images": images}
    stores = {which: evaluation_store(context, which) for which in WHICH}
    scores = context.pool.call(score, plan, context.folder, stores)
    atomic_write(context.folder.scores, json.dumps({which: s.model_dump(mode="json") for which, s in scores.items()}))
    after = scores["after"]
    progress.done(done, DINO=after.dino, CLIP_I=after.clip_i, CLIP_T=after.clip_t)
    return {
        "images": images,
        "dino": after.dino,
        "clipI": after.clip_i,
        "clipT": after.clip_t,
        "pres": after.pres,
        "div": after.div_class,
    }


def score(plan: Plan, folder: JobFolder, stores: dict[str, ImageStore]) -> dict[str, Scores]:
    """Score what both models drew; runs on a worker, on its GPU if it has one."""
    from dreambooth_trainer.metrics.encoders import load_encoders
    from dreambooth_trainer.metrics.scores import PromptImages, measure

    encoders = load_encoders(plan.dino, plan.clip, work_device())
    real = [Image.open(path) for path in sorted(folder.prepared.glob("*.png"))]
    scores = {}
    for which, store in stores.items():
        count = images_per_prompt(plan, which)
        groups = [
            PromptImages(
                _scored_text(plan, template), load_images(store, template.replace("{}", plan.subject_noun), count)
            )
            for template in evaluation_prompts(plan)
        ]
        scores[which] = measure(encoders, real, groups, load_images(store, plan.class_prompt, NUM_CLASS_PROMPT_IMAGES))
    return scores


def _scored_text(plan: Plan, template: str) -> str:
    # CLIP has never met the rare token: pictures are compared with the prompt without it.
    return template.replace("{}", plan.spec.subject.class_)


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
        ThresholdError: with one issue for every score below its threshold.
    """
    scores = read_scores(context)
    if scores is None:
        return
    from dreambooth_trainer.metrics.scores import failed_thresholds

    issues = failed_thresholds(scores["after"], context.plan.spec.evaluation.thresholds)
    if issues:
        raise ThresholdError(issues)


EVALUATE = Phase("evaluate", _inputs, _complete, _run)
