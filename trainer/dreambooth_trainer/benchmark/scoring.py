"""Scores images with the paper's metrics, outside of a job's evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL import Image

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.status import TrainerPhase
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.benchmark.generated import ScoredImages
from dreambooth_trainer.metrics.encoder_files import CLIP, DINO, EncoderKind, encoder_digest, encoder_folder
from dreambooth_trainer.metrics.encoders import Encoders, load_encoders
from dreambooth_trainer.metrics.measure import PromptImages, measure
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.metrics.scores import Scores, comparable_with_paper, mean_scores
from dreambooth_trainer.planning.defaults import PAPER
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.evaluation_set import (
    MODELS,
    Model,
    evaluation_prompts,
    images_per_prompt,
    load_images,
    num_class_prompt_images,
)
from dreambooth_trainer.sprites import EVALUATOR_WEIGHTS
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore
from dreambooth_trainer.store.run_record import read_completion, read_run

_OPTIONS = {DINO.path: "--dino", CLIP.path: "--clip"}


class UsedEncoder(Strict):
    """An encoder: Hub ID, folder or builtin:sprites, and the digest of its files."""

    name: str
    digest: str


class ScoreReport(Strict):
    """The result of `dreambooth score`.

    Attributes:
        images, references, class_images: numbers of images.
        not_computed: reasons by the name of the metric.
        comparable_with_paper: whether the encoders are those of the paper.
    """

    scores: Scores
    images: int
    references: int
    class_images: int
    dino_encoder: UsedEncoder
    clip_encoder: UsedEncoder
    not_computed: Mapping[str, str]
    comparable_with_paper: bool


def is_job(folder: Path) -> bool:
    """Whether a folder is that of a job."""
    return JobFolder(folder).run.exists()


def evaluation_images(folder: Path) -> tuple[Plan, dict[Model, ImageStore]]:
    """The plan of a job, and the evaluation images of the base model and of the trained model.

    Raises:
        UserError: the job has not generated its evaluation images.
    """
    job = JobFolder(folder.resolve())
    run = read_run(job)
    record = read_completion(job, run.keys, TrainerPhase.EVALUATE)
    if record is None:
        remedy = "run the job again; it continues where it stopped"
        raise UserError(ValidationIssue("--images", str(folder), "is a job without a finished evaluation", remedy))
    images: Any = record["images"]
    return run.plan, {model: ImageStore(str(job.evaluation_images / images[model])) for model in MODELS}


def read_job(folder: Path) -> tuple[dict[str, ScoredImages], tuple[str, str]]:
    """The images of a job's trained model by identifier of the subject, and the names of the encoders of its plan.

    Raises:
        UserError: as `evaluation_images`.
    """
    plan, stores = evaluation_images(folder)
    job = JobFolder(folder.resolve())
    subjects = {
        subject.identifier: subject_images(plan, job, index, "after", stores["after"])
        for index, subject in enumerate(plan.subjects)
    }
    return subjects, (plan.dino, plan.clip)


def subject_images(plan: Plan, job: JobFolder, index: int, model: Model, store: ImageStore) -> ScoredImages:
    """The images of the subject with this index in the evaluation of a job."""
    subject, count = plan.subjects[index], images_per_prompt(plan, model)
    return ScoredImages(
        references=[Image.open(path) for path in job.photos_of(index)],
        groups=[
            PromptImages(
                fill_template(template, subject.class_),
                load_images(store, fill_template(template, subject.noun), count),
            )
            for template in evaluation_prompts(plan, subject)
        ],
        class_images=load_images(store, subject.class_prompt, num_class_prompt_images(plan)),
    )


def default_encoders(references: str) -> tuple[str, str]:
    """Names of the encoders in place of DINO and CLIP: the paper's, or those for sprites with built-in subjects."""
    sprites = references.startswith(BUILTIN_SPRITES)
    return (BUILTIN_SPRITES, BUILTIN_SPRITES) if sprites else (PAPER.dino, PAPER.clip)


def open_encoders(dino: str, clip: str, device: str) -> Encoders:
    """Load both encoders.

    Raises:
        UserError: with the issues of both, at the options --dino and --clip.
        TransientError: the Hub cannot be reached.
    """
    try:
        return load_encoders(dino, clip, device)
    except UserError as error:
        raise UserError([_with_remedy(issue) for issue in error.issues]) from error
    except TransientError as error:
        raise TransientError(f"{error}; {' and '.join(map(_download, _OPTIONS.values()))}") from error


def _with_remedy(issue: ValidationIssue) -> ValidationIssue:
    option = _OPTIONS.get(issue.path, issue.path)
    return replace(issue, path=option, remedy=f"{_download(option)}; or set {option} {BUILTIN_SPRITES} for sprites")


def _download(option: str) -> str:
    """What to do on a machine without access to the Hub."""
    paper = PAPER.dino if option == "--dino" else PAPER.clip
    folder = Path(paper).name
    return f"download {paper} on another machine (hf download {paper} --local-dir {folder}) and set {option} ./{folder}"


def score(subjects: Mapping[str, ScoredImages], encoders: Encoders) -> ScoreReport:
    """Score the images of each subject, by identifier. The scores of several subjects are means."""
    groups = [group for images in subjects.values() for group in images.groups]
    if encoders.lpips is not None and any(len({image.size for image in group.images}) > 1 for group in groups):
        encoders = replace(encoders, lpips=None, without_lpips="LPIPS compares images of one size with each other")
    scores = mean_scores(
        {
            identifier: measure(encoders, images.references, images.groups, images.class_images)
            for identifier, images in subjects.items()
        }
    )
    every = list(subjects.values())
    return ScoreReport(
        scores=scores,
        images=sum(len(group.images) for images in every for group in images.groups),
        references=sum(len(images.references) for images in every),
        class_images=sum(len(images.class_images) for images in every),
        dino_encoder=_used(DINO, encoders.dino.name),
        clip_encoder=_used(CLIP, encoders.clip.name),
        not_computed=_not_computed(scores, encoders),
        comparable_with_paper=comparable_with_paper(encoders.dino.name, encoders.clip.name),
    )


def _used(kind: EncoderKind, name: str) -> UsedEncoder:
    folder = EVALUATOR_WEIGHTS if name == BUILTIN_SPRITES else encoder_folder(kind, name)
    return UsedEncoder(name=name, digest=encoder_digest(folder))


def _not_computed(scores: Scores, encoders: Encoders) -> dict[str, str]:
    one_each = "no prompt has two images"
    reasons = {
        "pres": "needs --class-images",
        "classDiversity": "needs two --class-images",
        "subjectDiversity": one_each,
        "div": one_each
        if encoders.lpips is not None
        else encoders.without_lpips.removeprefix("DIV is not computed: ")
        or "LPIPS is not loaded with the encoder for sprites",
    }
    return {name: reason for name, reason in reasons.items() if name not in scores.values}
