"""Generates images with the base model and the trained model, and scores both as in the paper (section 4.2)."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from PIL import Image
from pydantic import JsonValue

from dreambooth_api.errors import ThresholdError, TransientError
from dreambooth_api.metrics import METRICS
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.status import TrainerPhase
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.metrics.lpips_packages import missing_packages, wants_lpips
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.class_images import shared_folder
from dreambooth_trainer.planning.cascade import SUPER_RESOLUTION
from dreambooth_trainer.planning.plan import Plan, PlannedSubject, fingerprint
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.evaluation_set import (
    MODELS,
    Model,
    evaluation_prompts,
    image_requests,
    images_per_prompt,
    load_images,
    num_class_prompt_images,
)
from dreambooth_trainer.sampling.generate import generate_images
from dreambooth_trainer.sampling.pipeline import ImageRequest
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.image_store import ImageStore

# Heavy libraries are imported inside functions: the driver does not need them.
if TYPE_CHECKING:
    from dreambooth_trainer.metrics.scores import Scores


def _image_key(context: Context, model: Model) -> str:
    """Digest of everything that an image depends on, except prompt and number."""
    plan = context.plan
    return fingerprint(
        {
            "model": context.base_digest if model == "before" else context.keys[TrainerPhase.TRAIN],
            "sampler": plan.sampler.model_dump(),
            "resolution": plan.resolution,
            "precision": plan.precision,
            "seed": plan.spec.training.seed,
        }
    )


def evaluation_store(context: Context, model: Model) -> ImageStore:
    """The store of one model's images in the folder of the job."""
    return ImageStore(str(context.folder.evaluation_images.resolve() / _image_key(context, model)[:16] / model))


def base_image_store(context: Context) -> ImageStore:
    """The store in which jobs share images of the base model, in the same scope as class images."""
    return ImageStore(f"{shared_folder(context)}/base-images/{_image_key(context, 'before')}")


def read_scores(context: Context) -> dict[str, Scores] | None:
    """The scores of both models; None if the job's evaluation is disabled, even if an earlier run computed some."""
    return read_stored_scores(context.folder) if context.plan.spec.evaluation.enabled else None


def read_stored_scores(folder: JobFolder) -> dict[str, Scores]:
    """The scores of both models in the folder of a job that was evaluated."""
    from dreambooth_trainer.metrics.scores import Scores

    content = json.loads(folder.scores.read_text())
    return {model: Scores.model_validate(scores) for model, scores in content.items()}


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    images: JsonValue = {
        model: [evaluation_store(context, model).url.rsplit("/", 2)[1], [r.name for r in image_requests(plan, model)]]
        for model in MODELS
    }
    if not plan.spec.evaluation.enabled:
        return {"train": context.keys[TrainerPhase.TRAIN], "images": images}
    return {
        "train": context.keys[TrainerPhase.TRAIN],
        "images": images,
        "prompts": [
            [subject.identifier, _text_without_identifier(subject, template), template]
            for subject in plan.subjects
            for template in evaluation_prompts(plan, subject)
        ],
        "class_prompts": [subject.class_prompt for subject in plan.subjects],
        "encoders": [plan.dino, plan.clip],
        "lpips": _uses_lpips(plan),
    }


def _uses_lpips(plan: Plan) -> bool:
    # Installed packages, not weights: whether a download succeeds must not decide if a finished phase runs again.
    return wants_lpips(plan.dino) and not missing_packages()


def _complete(context: Context) -> bool:
    if context.plan.spec.evaluation.enabled and not context.folder.scores.exists():
        return False
    requested: dict[Model, set[str]] = {
        model: {request.name for request in image_requests(context.plan, model)} for model in MODELS
    }
    return all(names <= evaluation_store(context, model).names() for model, names in requested.items())


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    plan = context.plan
    stores: dict[Model, ImageStore] = {model: evaluation_store(context, model) for model in MODELS}
    count = _generate(context, stores, progress)
    root = f"{context.folder.evaluation_images.resolve()}/"
    images: JsonValue = {model: store.url.removeprefix(root) for model, store in stores.items()}
    if not plan.spec.evaluation.enabled:
        return {"images": images}
    scores = _score(context, stores)
    content = {model: scores[model].model_dump(mode="json", by_alias=True) for model in MODELS}
    atomic_write(context.folder.scores, json.dumps(content))
    values = scores["after"].values
    progress.done(count, **{metric.label: values[metric.name] for metric in METRICS if metric.threshold})
    subjects: JsonValue = {identifier: dict(own.values) for identifier, own in scores["after"].subjects.items()}
    commits: JsonValue = dict(context.encoder_commits)
    return {"images": images, **values, "subjects": subjects, "encoderCommits": commits}


def _score(context: Context, stores: Mapping[Model, ImageStore]) -> dict[Model, Scores]:
    """Score the images of both models on all workers: each scores some subjects of one model."""
    from dreambooth_trainer.metrics.scores import mean_scores

    plan = context.plan
    # One call per worker, because it loads the encoders.
    parts = max(1, min(context.pool.size().workers // len(MODELS), len(plan.subjects)))
    calls = [
        (plan, context.folder, model, stores[model], range(part, len(plan.subjects), parts), context.encoder_commits)
        for model in MODELS
        for part in range(parts)
    ]
    scored: dict[Model, dict[int, Scores]] = {model: {} for model in MODELS}
    for model, subjects in context.pool.map(score_images, calls):
        scored[model] |= subjects
    return {
        model: mean_scores({subject.identifier: own[index] for index, subject in enumerate(plan.subjects)})
        for model, own in scored.items()
    }


def _generate(context: Context, stores: dict[Model, ImageStore], progress: PhaseProgress) -> int:
    """Generate the images of both models; returns their number."""
    requests: dict[Model, list[ImageRequest]] = {model: image_requests(context.plan, model) for model in MODELS}
    count = sum(map(len, requests.values()))
    progress.total(count)
    generate_evaluation_images(context, requests, stores, progress.done)
    return count


def generate_evaluation_images(
    context: Context,
    requests: Mapping[Model, list[ImageRequest]],
    stores: Mapping[Model, ImageStore],
    on_progress: Callable[[int], None],
) -> None:
    """Generate the images of both models that their stores do not contain yet.

    Args:
        on_progress: called with the number of images of both that exist so far.
    """
    plan, before = context.plan, requests["before"]
    config = context.sampling_config(plan.sampler)
    generate_base_images(context, stores["before"], before, on_progress)
    folder = context.folder.trained.resolve()
    trained, adapter = BaseModelRef(id=str(folder)), None
    if plan.image_prompts is not None:
        trained, adapter = plan.model, folder
    if plan.super_resolution is not None:
        second = context.folder.of_stage(SUPER_RESOLUTION).trained.resolve()
        trained = trained.model_copy(update={"super_resolution": ModelSource(id=str(second))})
    generate_images(
        *(context.pool, trained, config, stores["after"], requests["after"]),
        lambda done: on_progress(len(before) + done),
        adapter=adapter,
    )


def generate_base_images(
    context: Context, local: ImageStore, requests: list[ImageRequest], on_progress: Callable[[int], None]
) -> None:
    """Copy images of the base model that another job has generated, and generate and share the missing ones."""
    plan, shared = context.plan, base_image_store(context)

    def copy_images() -> list[ImageRequest]:
        missing: list[ImageRequest] = []
        copied, available = local.names(), shared.names()
        for request in requests:
            if request.name in copied:
                continue
            image = shared.get_or_delete(request.name, plan.resolution) if request.name in available else None
            if image is None:
                missing.append(request)
            else:
                local.put(request.name, image)
        return missing

    def on_done(done: int) -> None:
        on_progress(len(requests) - len(missing) + done)

    if missing := copy_images():
        wanted = {request.name for request in missing}

        def on_wait() -> int:
            done = len(shared.names() & wanted)
            on_done(done)
            return done

        with shared.lease(on_wait):
            config = context.sampling_config(plan.sampler)
            generate_images(context.pool, plan.model, config, shared, missing, on_done)
        if lost := copy_images():
            raise TransientError(f"{shared.url}: {lost[0].name}.png was deleted or damaged while it was used")
    on_progress(len(requests))


def score_images(
    plan: Plan,
    folder: JobFolder,
    model: Model,
    store: ImageStore,
    subjects: Iterable[int],
    encoder_commits: Mapping[str, str],
) -> tuple[Model, dict[int, Scores]]:
    """Score the images of subjects by one model. Runs on a worker, on its GPU if it has one.

    Args:
        subjects: their indices.
    """
    from dreambooth_trainer.metrics.encoders import load_encoders
    from dreambooth_trainer.metrics.measure import PromptImages, measure

    encoders, count = (
        load_encoders(plan.dino, plan.clip, work_device(), encoder_commits),
        images_per_prompt(plan, model),
    )

    def score_subject(index: int) -> Scores:
        subject = plan.subjects[index]
        real = [Image.open(path) for path in folder.photos_of(index)]
        groups = [
            PromptImages(
                _text_without_identifier(subject, template),
                load_images(store, fill_template(template, subject.noun), count),
            )
            for template in evaluation_prompts(plan, subject)
        ]
        class_images = load_images(store, subject.class_prompt, num_class_prompt_images(plan))
        return measure(encoders, real, groups, class_images)

    return model, {index: score_subject(index) for index in subjects}


def _text_without_identifier(subject: PlannedSubject, template: str) -> str:
    # CLIP does not know the identifier: images are compared with the prompt without it.
    return fill_template(template, subject.class_)


def check_encoders(plan: Plan) -> tuple[dict[str, str], str]:
    """Load the encoders once before the first phase, so that a missing encoder is found before training.

    Returns:
        The commits of encoders from the Hub, by ID: all workers load the same files. And a line for the user about a
        score that will not be computed, or an empty string.

    Raises:
        UserError: an encoder is not available.
        TransientError: the Hub cannot be reached.
    """
    if not plan.spec.evaluation.enabled or {plan.dino, plan.clip} == {BUILTIN_SPRITES}:
        return {}, ""
    from dreambooth_trainer.metrics.encoder_files import pinned_commits
    from dreambooth_trainer.metrics.encoders import load_encoders

    commits = pinned_commits(plan.dino, plan.clip)
    return commits, load_encoders(plan.dino, plan.clip, commits=commits).without_lpips


def check_thresholds(context: Context) -> None:
    """Compare the scores of the trained model with the thresholds of the job.

    Raises:
        ThresholdError: with one issue for each score below its threshold.
    """
    scores = read_scores(context)
    if scores is None:
        return
    from dreambooth_trainer.metrics.scores import failed_thresholds

    issues = failed_thresholds(scores["after"], context.plan.spec.evaluation.thresholds)
    if issues:
        raise ThresholdError(issues)


EVALUATE = Phase(TrainerPhase.EVALUATE, _inputs, _complete, _run)
