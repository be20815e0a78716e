"""The images of an evaluation: which prompts, how many images of each, under which names."""

from __future__ import annotations

import hashlib

from PIL import Image

from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.metrics.prompts import paper_prompts
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.generate import ImageRequest, noise_seed
from dreambooth_trainer.store.image_store import ImageStore

# Pictures of the class prompt and of the subject alone that each model draws, for PRES, DIV and the report.
NUM_CLASS_PROMPT_IMAGES = 32
NUM_SUBJECT_IMAGES = 8
WHICH = ("before", "after")


def evaluation_prompts(plan: Plan) -> list[str]:
    """Templates: the job's, or the paper's 25 for the class, or the list that the built-in base can read."""
    if plan.spec.evaluation.prompts:
        return list(plan.spec.evaluation.prompts)
    if plan.model.id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites.captions import SPRITES_PROMPTS

        return list(SPRITES_PROMPTS)
    return paper_prompts(plan.spec.subject.class_)


def image_names(prompt: str, count: int) -> list[str]:
    """Names of the first pictures of a prompt; another prompt has other names."""
    digest = hashlib.sha256(prompt.encode()).hexdigest()[:12]
    return [f"prompt-{digest}-{image:02d}" for image in range(count)]


def images_per_prompt(plan: Plan, which: str) -> int:
    """How many pictures a model draws of an evaluation prompt. One of the base's is enough to show what changed."""
    return plan.spec.evaluation.images_per_prompt if plan.spec.evaluation.enabled and which == "after" else 1


def image_requests(plan: Plan, which: str) -> list[ImageRequest]:
    """What one model draws. Before and after start from the same noise, so that they can be compared."""
    per_prompt = images_per_prompt(plan, which)
    counts = [(template.replace("{}", plan.subject_noun), per_prompt) for template in evaluation_prompts(plan)]
    counts += [(plan.instance_prompt, NUM_SUBJECT_IMAGES), (plan.class_prompt, NUM_CLASS_PROMPT_IMAGES)]
    # A prompt that is asked for twice is drawn once.
    prompts = {name: prompt for prompt, count in counts for name in image_names(prompt, count)}
    seed = plan.spec.training.seed
    return [ImageRequest(name, prompt, noise_seed("evaluate", seed, name)) for name, prompt in prompts.items()]


def load_images(store: ImageStore, prompt: str, count: int) -> list[Image.Image]:
    """The first pictures of a prompt."""
    return [store.get(name) for name in image_names(prompt, count)]
