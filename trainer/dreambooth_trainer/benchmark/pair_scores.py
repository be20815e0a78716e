"""Images with both subjects of a pair, and their scores.

Legend: N generated images, M photos, D features.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from PIL import Image
from torch import Tensor

from dreambooth_trainer.benchmark.jobs import Case
from dreambooth_trainer.benchmark.kind import Measured
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.evaluate import evaluation_store, generate_evaluation_images, read_stored_scores
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.evaluation_set import (
    MODELS,
    Model,
    evaluation_prompts,
    images_per_prompt,
    load_images,
    requests_of,
)
from dreambooth_trainer.sampling.pipeline import ImageRequest
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore

ONE_SUBJECT = {"singleDino": "dino", "singleClipT": "clipT"}
"""Keys of the scores of the job's own evaluation, with one subject in each prompt, and the names of the metrics."""


def joint_prompts(plan: Plan) -> list[str]:
    """The evaluation prompts with both subjects: "a sks dog and a zwx cat on the beach"."""
    return _joint(plan, [subject.noun for subject in plan.subjects])


def joint_texts(plan: Plan) -> list[str]:
    """The same without identifiers, which CLIP does not know: "a dog and a cat on the beach"."""
    return _joint(plan, [subject.class_ for subject in plan.subjects])


def _joint(plan: Plan, nouns: Sequence[str]) -> list[str]:
    # Both subjects have the prompts of the job.
    return [fill_template(template, " and a ".join(nouns)) for template in evaluation_prompts(plan, plan.subjects[0])]


def measure_pair(context: Context, case: Case) -> Measured:
    """Generate the images of both models with both subjects, and score them on a worker.

    They are stored beside the evaluation images, and start from the same noise for both models. As with these, jobs
    share images of the base model. See `pair_values` and `ONE_SUBJECT` for the keys.
    """
    del case
    plan, prompts = context.plan, joint_prompts(context.plan)
    stores: dict[Model, ImageStore] = {model: evaluation_store(context, model) for model in MODELS}
    requests: dict[Model, list[ImageRequest]] = {
        model: requests_of(plan, [(prompt, images_per_prompt(plan, model)) for prompt in prompts]) for model in MODELS
    }
    generate_evaluation_images(context, requests, stores, lambda _: None)
    values, photos = context.pool.call(score_pair, plan, context.folder, stores, context.encoder_commits)
    scores = read_stored_scores(context.folder)
    for model in MODELS:
        values[model] |= {key: scores[model].values[metric] for key, metric in ONE_SUBJECT.items()}
    return Measured(values["before"], values["after"], photos)


def score_pair(
    plan: Plan, folder: JobFolder, stores: Mapping[Model, ImageStore], encoder_commits: Mapping[str, str]
) -> tuple[dict[Model, dict[str, float]], dict[str, float]]:
    """Values of the images of each model, and of the photos. Runs on a worker, on its GPU if it has one."""
    from dreambooth_trainer.metrics.encoders import load_encoders
    from dreambooth_trainer.metrics.fidelity import prompt_fidelity

    encoders = load_encoders(plan.dino, plan.clip, work_device(), encoder_commits, lpips=False)
    photos = [[Image.open(path) for path in folder.photos_of(index)] for index in range(len(plan.subjects))]
    dino, clip = ([encode(own) for own in photos] for encode in (encoders.dino.encode, encoders.clip.encode))
    values: dict[Model, dict[str, float]] = {}
    for model, store in stores.items():
        count = images_per_prompt(plan, model)
        images = [image for prompt in joint_prompts(plan) for image in load_images(store, prompt, count)]
        texts = encoders.clip.encode_text(joint_texts(plan)).repeat_interleave(count, dim=0)
        clip_ND = encoders.clip.encode(images)
        clip_t = prompt_fidelity(clip_ND, texts)
        values[model] = {**pair_values(encoders.dino.encode(images), dino, clip_ND, clip), "clipT": clip_t}
    return values, photo_values(dino, clip)


def pair_values(
    dino_ND: Tensor, dino_photos: Sequence[Tensor], clip_ND: Tensor, clip_photos: Sequence[Tensor]
) -> dict[str, float]:
    """Means over images of their similarities to the photos of both subjects.

    The similarity of an image to a subject is its mean cosine similarity to the photos. `dinoLower` is the mean over
    images of the lower of both, which is high only if both subjects are in the image. `dino` and `clipI` are means of
    both.

    Args:
        dino_photos, clip_photos: features of the photos of the first and of the second subject, each [M, D].
    """
    from dreambooth_trainer.metrics.fidelity import mean_cosines

    first_N, second_N = (mean_cosines(dino_ND, photos_MD) for photos_MD in dino_photos)
    clip_N = [mean_cosines(clip_ND, photos_MD) for photos_MD in clip_photos]
    values = {"dinoFirst": float(first_N.mean()), "dinoSecond": float(second_N.mean())}
    return {**values, **_of_both((first_N, second_N), clip_N)}


def photo_values(dino_photos: Sequence[Tensor], clip_photos: Sequence[Tensor]) -> dict[str, float]:
    """Values of the photos of both subjects: what a perfect image scores that has only one of the subjects.

    Photos are compared with the other photos of their subject. Empty if a subject has a single photo.
    """
    if min(map(len, dino_photos)) < 2:
        return {}
    return _of_both(_own_and_other(dino_photos), _own_and_other(clip_photos))


def _own_and_other(photos: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Similarities of all photos to the others of their subject, and to those of the other subject, each [M]."""
    import torch

    from dreambooth_trainer.metrics.fidelity import mean_cosines, mean_cosines_to_others

    first_MD, second_MD = photos
    own = [mean_cosines_to_others(first_MD), mean_cosines_to_others(second_MD)]
    other = [mean_cosines(first_MD, second_MD), mean_cosines(second_MD, first_MD)]
    return torch.cat(own), torch.cat(other)


def _of_both(dino: Sequence[Tensor], clip: Sequence[Tensor]) -> dict[str, float]:
    """Values of images from their similarities to one subject and to the other, each [N]."""
    (dino_a, dino_b), (clip_a, clip_b) = dino, clip
    return {
        "dinoLower": float(dino_a.minimum(dino_b).mean()),
        "dino": float((dino_a + dino_b).mean() / 2),
        "clipI": float((clip_a + clip_b).mean() / 2),
    }
