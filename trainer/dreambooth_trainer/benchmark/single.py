"""`dreambooth bench paper`: one subject in each job, scored as in the paper."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean
from typing import Final

from PIL import Image

from dreambooth_api.metrics import METRICS
from dreambooth_trainer.benchmark.copies import COPY, nearest_correlations
from dreambooth_trainer.benchmark.jobs import Case
from dreambooth_trainer.benchmark.kind import COSTS, Benchmark, Column, Measured, Published
from dreambooth_trainer.benchmark.steps import open_subjects
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.metrics.scores import LATER, PAPER
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


def measure_subject(context: Context) -> Measured:
    """The scores of both models by the name of the metric, and `nearest` and `copies`.

    They are the mean correlation of images with the nearest training image, and the share of images with a correlation
    of `COPY` or more.
    """
    plan, scores = context.plan, read_stored_scores(context.folder)
    training = [Image.open(path) for path in context.folder.prepared_of(0)]
    values: dict[Model, dict[str, float]] = {}
    for model in MODELS:
        store, count = evaluation_store(context, model), images_per_prompt(plan, model)
        images = [image for prompt in subject_prompts(plan) for image in load_images(store, prompt, count)]
        nearest = nearest_correlations(images, training)
        copies = fmean(value >= COPY for value in nearest)
        values[model] = {**scores[model].values, "nearest": fmean(nearest), "copies": copies}
    return Measured(values["before"], values["after"], scores["after"].real_images)


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
