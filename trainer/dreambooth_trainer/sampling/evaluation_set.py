"""Images of an evaluation: prompts, number of images per prompt, and names in the image store."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final, Literal

from PIL import Image

from dreambooth_api.job import JobSpec
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.metrics.prompts import fill_template, paper_prompts
from dreambooth_trainer.planning.plan import Plan, PlannedSubject
from dreambooth_trainer.sampling.pipeline import ImageRequest, noise_seed
from dreambooth_trainer.store.image_store import ImageStore

# Prompts, class prompt images and instance prompt images in the report of a job that is not scored.
NUM_UNSCORED = 4

Model = Literal["before", "after"]
"""The base model, or the trained model."""
MODELS: Final[tuple[Model, Model]] = ("before", "after")


def evaluation_prompts(plan: Plan, subject: PlannedSubject) -> list[str]:
    """A subject's prompt templates: all `prompt_templates`, or without scores a few of the default ones."""
    prompts = prompt_templates(plan.spec, plan.model.id, subject.class_)
    return prompts if plan.spec.evaluation.enabled or plan.spec.evaluation.prompts else evenly(prompts, NUM_UNSCORED)


def prompt_templates(spec: JobSpec, model_id: str, class_name: str) -> list[str]:
    """Prompt templates for a class: those of the job, those that the built-in model can read, or the paper's 25."""
    if spec.evaluation.prompts:
        return list(spec.evaluation.prompts)
    if model_id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS

        return list(SPRITES_PROMPTS)
    return paper_prompts(class_name)


def evenly(items: list[str], count: int) -> list[str]:
    """At most `count` items, spread evenly over a list in which similar items are next to each other."""
    return items[:: max(1, len(items) // count)][:count]


def num_class_prompt_images(plan: Plan) -> int:
    """Images that each model generates of the class prompt: for PRES and class diversity, and for the report."""
    return 32 if plan.spec.evaluation.enabled else NUM_UNSCORED


def num_instance_prompt_images(plan: Plan) -> int:
    """Images that each model generates of the instance prompt, for the report."""
    return 8 if plan.spec.evaluation.enabled else NUM_UNSCORED


def image_names(prompt: str, count: int) -> list[str]:
    """Names of the first `count` images of a prompt. They depend on the text, not on the position in the list."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return [f"prompt-{digest}-{image:02d}" for image in range(count)]


def images_per_prompt(plan: Plan, model: Model) -> int:
    """Number of images per evaluation prompt. One image of the base model is enough for the comparison."""
    return plan.spec.evaluation.images_per_prompt if plan.spec.evaluation.enabled and model == "after" else 1


def image_requests(plan: Plan, model: Model) -> list[ImageRequest]:
    """All images of one model, as `requests_of`."""
    per_prompt = images_per_prompt(plan, model)
    counts: list[tuple[str, int]] = []
    for subject in plan.subjects:
        prompts = evaluation_prompts(plan, subject)
        counts += [(fill_template(template, subject.noun), per_prompt) for template in prompts]
        counts += [(subject.instance_prompt, num_instance_prompt_images(plan))]
        counts += [(subject.class_prompt, num_class_prompt_images(plan))]
    return requests_of(plan, counts)


def requests_of(plan: Plan, counts: Iterable[tuple[str, int]]) -> list[ImageRequest]:
    """Images of prompts. Both models start from the same noise, so that their images are comparable.

    Args:
        counts: prompts with the number of images of each. A prompt that occurs twice is generated once.
    """
    by_name = {name: prompt for prompt, count in counts for name in image_names(prompt, count)}
    seed = plan.spec.training.seed
    return [ImageRequest(name, prompt, noise_seed("evaluate", seed, name)) for name, prompt in by_name.items()]


def load_images(store: ImageStore, prompt: str, count: int) -> list[Image.Image]:
    """The first `count` images of a prompt."""
    return [store.get(name) for name in image_names(prompt, count)]
