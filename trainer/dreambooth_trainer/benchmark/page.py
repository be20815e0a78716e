"""The page of a benchmark: the tables, and images of all methods side by side. One self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from dreambooth_trainer.benchmark.runs import Run
from dreambooth_trainer.benchmark.scoring import evaluation_images
from dreambooth_trainer.benchmark.summary import BASE, COLUMNS, Summary, as_cell, as_claims, paper_note
from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.metrics.scores import PAPER
from dreambooth_trainer.report.page import img_tag
from dreambooth_trainer.sampling.evaluation_set import evaluation_prompts, evenly, images_per_prompt, load_images
from dreambooth_trainer.store.folder import atomic_write

PROMPTS = 4
"""Prompts shown of each subject."""
IMAGES = 2
"""Images shown of each prompt and method."""
SIDE = 256
"""Maximum side of an image on the page, pixels. A page of 30 subjects and five methods has 1,500 images."""


@dataclass(frozen=True)
class SubjectImages:
    """Photos of a subject, and by prompt the images of each column: the base model and the methods."""

    name: str
    photos: Sequence[Image.Image]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]]


def write_page(summary: Summary, runs: Sequence[Run], path: Path) -> None:
    """Write the page.

    Args:
        runs: the finished jobs, whose images are in their folders.
    """
    environment = Environment(
        loader=PackageLoader("dreambooth_trainer.benchmark", package_path=""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(img=_img)
    text = environment.get_template("page.html.j2").render(
        summary=summary,
        claims=as_claims(summary),
        columns=[column for column in COLUMNS if any(column.key in row.values for row in summary.rows)],
        cell=as_cell,
        paper=PAPER,
        paper_note=paper_note(summary),
        subjects=collect_images(runs),
    )
    atomic_write(path, text)


def collect_images(runs: Sequence[Run]) -> list[SubjectImages]:
    """Images of each subject, of the lowest seed that has finished."""
    by_subject: dict[str, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_subject.setdefault(run.subject.name, {}).setdefault(run.method, run)
    return [_subject_images(name, methods) for name, methods in by_subject.items()]


def _subject_images(name: str, methods: dict[str, Run]) -> SubjectImages:
    rows: dict[str, list[list[Image.Image]]] = {}
    photos: list[Image.Image] = []
    for run in methods.values():
        plan, stores = evaluation_images(run.folder.root)
        subject = plan.subjects[0]
        photos = photos or [Image.open(path) for path in run.folder.photos_of(0)]
        for template in evenly(evaluation_prompts(plan, subject), PROMPTS):
            prompt = fill_template(template, subject.noun)
            if prompt not in rows:
                rows[prompt] = [load_images(stores["before"], prompt, 1)]
            count = min(IMAGES, images_per_prompt(plan, "after"))
            rows[prompt].append(load_images(stores["after"], prompt, count))
    return SubjectImages(name, photos, [BASE, *methods], list(rows.items()))


def _img(image: Image.Image, alt: str) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return img_tag(shown, alt)
