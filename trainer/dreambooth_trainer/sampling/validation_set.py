"""Images of a validation: one for each prompt and subject, always from the same noise."""

from __future__ import annotations

from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.planning.plan import Plan, fingerprint
from dreambooth_trainer.sampling.pipeline import ImageRequest, noise_seed
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.validations import Validations


def validation_requests(plan: Plan) -> list[ImageRequest]:
    """The images of one step, in the order of their numbers: the prompts of the first subject come first."""
    if plan.spec.training.validation is None:
        return []
    prompts = [
        fill_template(template, subject.noun)
        for subject in plan.subjects
        for template in plan.spec.training.validation.prompts
    ]
    seed = plan.spec.training.seed
    # The number is part of the seed: a prompt that is listed twice gives two images.
    return [
        ImageRequest(str(number), prompt, noise_seed("validate", seed, number, prompt))
        for number, prompt in enumerate(prompts)
    ]


def is_due(plan: Plan, step: int) -> bool:
    """Whether to validate after a step; 0 is before the first one.

    A later stage of a model, which enlarges the images of the first one, is not validated.
    """
    validation = plan.spec.training.validation
    if validation is None or plan.stage:
        return False
    return step % validation.every_steps == 0 or step == plan.steps


def validated_steps(plan: Plan) -> list[int]:
    """The steps after which `is_due`, in order, without 0."""
    return [step for step in range(1, plan.steps + 1) if is_due(plan, step)]


def validations_of(plan: Plan, folder: JobFolder, train_key: str) -> Validations:
    """The validations of a job.

    Args:
        train_key: digest of what the trained weights depend on.
    """
    requests = validation_requests(plan)
    images = {
        "train": train_key,
        "prompts": [request.prompt for request in requests],
        "sampler": plan.sampler.model_dump(),
        "resolution": plan.stages[0].resolution,
    }
    root = folder.root.resolve() / folder.validation.name  # workers run in another folder
    return Validations(root, fingerprint(images), len(requests))
