"""`dreambooth bench paper`: one subject in each job, scored as in the paper."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Final

from PIL import Image

from dreambooth_api.metrics import METRICS
from dreambooth_trainer.benchmark.copies import COPY, nearest_correlations
from dreambooth_trainer.benchmark.generated import read_references
from dreambooth_trainer.benchmark.jobs import Case
from dreambooth_trainer.benchmark.kind import COSTS, Benchmark, Column, Measured, Published
from dreambooth_trainer.benchmark.scoring import subject_images
from dreambooth_trainer.benchmark.steps import open_subjects
from dreambooth_trainer.cluster.hardware import work_device
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.metrics.scores import LATER, PAPER, Scores
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.phases.evaluate import evaluation_store, read_stored_scores
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.evaluation_set import (
    MODELS,
    Model,
    evaluation_prompts,
    images_per_prompt,
    load_images,
)
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.image_store import ImageStore

REFERENCE_METRICS = ("dino", "clipI", "pres")
"""Metrics that compare images with the real images of the subject."""
_PUBLISHED = (
    "The paper's table 1, and below it later methods on its dataset as listed in table 2 of DreamCache (arXiv "
    "2411.17786). Numbers of different papers are not of the same prompts, photos and number of images."
)
_ARROWS = {True: " ↑", False: " ↓", None: ""}


def open_single(dataset: str, out: Path, count: int | None) -> tuple[list[Case], str]:
    """The first subjects of a dataset, one in each job. Otherwise as `open_subjects`."""
    subjects, note = open_subjects(dataset, count, out)
    return [(subject,) for subject in subjects], note


def subject_prompts(plan: Plan) -> list[str]:
    """The evaluation prompts of the subject."""
    (subject,) = plan.subjects
    return [fill_template(template, subject.noun) for template in evaluation_prompts(plan, subject)]


def measure_subject(context: Context, case: Case) -> Measured:
    """The scores of both models by the name of the metric, and `nearest` and `copies`.

    They are the mean correlation of images with the nearest training image, and the share of images with a correlation
    of `COPY` or more. If the subject was trained on some of its images, the real images of the other values are all.
    """
    (subject,) = case
    plan, scores = context.plan, read_stored_scores(context.folder)
    stores: dict[Model, ImageStore] = {model: evaluation_store(context, model) for model in MODELS}
    if subject.references is not None:
        others = context.pool.call(
            score_again, plan, context.folder, stores, subject.references, context.encoder_commits
        )
        scores = {model: with_references(scores[model], others[model]) for model in MODELS}
    training = [Image.open(path) for path in context.folder.prepared_of(0)]
    values: dict[Model, dict[str, float]] = {}
    for model in MODELS:
        count = images_per_prompt(plan, model)
        images = [image for prompt in subject_prompts(plan) for image in load_images(stores[model], prompt, count)]
        nearest = nearest_correlations(images, training)
        copies = fmean(value >= COPY for value in nearest)
        values[model] = {**scores[model].values, "nearest": fmean(nearest), "copies": copies}
    return Measured(values["before"], values["after"], scores["after"].real_images)


def score_again(
    plan: Plan, folder: JobFolder, stores: Mapping[Model, ImageStore], references: Path, commits: Mapping[str, str]
) -> dict[Model, Scores]:
    """Score the images of each model with other real images. Runs on a worker, on its GPU if it has one.

    Args:
        references: folder of the real images.
        commits: of encoders from the Hub, by ID.
    """
    from dreambooth_trainer.metrics.encoders import load_encoders
    from dreambooth_trainer.metrics.measure import measure

    encoders = load_encoders(plan.dino, plan.clip, work_device(), commits, lpips=False)
    real = read_references("--dataset", str(references))
    scored: dict[Model, Scores] = {}
    for model, store in stores.items():
        own = subject_images(plan, folder, 0, model, store)
        scored[model] = measure(encoders, real, own.groups, own.class_images)
    return scored


def with_references(scores: Scores, others: Scores) -> Scores:
    """Scores with those values that compare with real images from other scores."""
    compared = {name: value for name, value in others.values.items() if name in REFERENCE_METRICS}
    return scores.model_copy(update={"values": {**scores.values, **compared}, "real_images": others.real_images})


def _decimals(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


SINGLE: Final = Benchmark(
    title="Methods compared",
    noun="subject",
    marker=".dreambooth-bench",
    photos="Real images",
    columns=(
        *(Column(m.name, m.label + _ARROWS[m.higher_is_better]) for m in METRICS if m.higher_is_better is not None),
        Column("nearest", "Nearest training image ↓"),
        Column("copies", f"Copies (≥ {COPY}) ↓"),
        *COSTS,
    ),
    per_case=("dino", "clipI", "clipT", "pres"),
    # Of the paper's table 1.
    claims=(("Full", "TextualInversion", "dino"), ("Full", "TextualInversion", "clipT")),
    published=Published(
        headings=("", "DINO", "CLIP-I", "CLIP-T"),
        rows=tuple((row.name, *map(_decimals, (row.dino, row.clip_i, row.clip_t))) for row in (*PAPER, *LATER)),
        note=_PUBLISHED,
        note_for_other_encoders=f"{_PUBLISHED} All of these encoders are others, so the numbers are on another scale: "
        "compare the order of the methods, not the numbers.",
    ),
    prompts=subject_prompts,
    measure=measure_subject,
)
