"""The page of a benchmark: the tables, and images of all methods side by side. One self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from PIL import Image

from dreambooth_trainer.benchmark.kind import Benchmark
from dreambooth_trainer.benchmark.runs import Run
from dreambooth_trainer.benchmark.scoring import evaluation_images
from dreambooth_trainer.benchmark.summary import BASE, Summary, as_cell, as_claims, columns_of, published_note
from dreambooth_trainer.report.page import img_tag
from dreambooth_trainer.sampling.evaluation_set import evenly, images_per_prompt, load_images
from dreambooth_trainer.store.folder import atomic_write

PROMPTS = 4
"""Prompts shown of each subject or pair."""
IMAGES = 2
"""Images shown of each prompt and method."""
SIDE = 256
"""Maximum side of an image on the page, pixels. A page of 30 subjects and five methods has 1,500 images."""


@dataclass(frozen=True)
class CaseImages:
    """Photos of a subject or of a pair, and by prompt the images of each column: the base model and the methods."""

    name: str
    photos: Sequence[Image.Image]
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Sequence[Image.Image]]]]


def write_page(benchmark: Benchmark, summary: Summary, runs: Sequence[Run], path: Path) -> None:
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
        benchmark=benchmark,
        summary=summary,
        claims=as_claims(benchmark, summary),
        columns=columns_of(benchmark, summary.rows),
        difference_columns=columns_of(benchmark, summary.differences),
        cell=as_cell,
        note=published_note(benchmark, summary),
        cases=collect_images(benchmark, runs),
    )
    atomic_write(path, text)


def collect_images(benchmark: Benchmark, runs: Sequence[Run]) -> list[CaseImages]:
    """Images of each subject or pair, of the lowest seed that has finished."""
    by_name: dict[str, dict[str, Run]] = {}
    for run in sorted(runs, key=lambda run: run.seed):
        by_name.setdefault(run.name, {}).setdefault(run.variant, run)
    return [_case_images(benchmark, name, variants) for name, variants in by_name.items()]


def _case_images(benchmark: Benchmark, name: str, variants: dict[str, Run]) -> CaseImages:
    rows: dict[int, tuple[str, list[list[Image.Image]]]] = {}
    photos: list[Path] = []
    for run in variants.values():
        plan, stores = evaluation_images(run.folder.root)
        own = [path for subject in range(len(plan.subjects)) for path in run.folder.photos_of(subject)]
        photos = max(photos, own, key=len)
        # Prompts of other class nouns differ, and are those of the same templates.
        for number, prompt in enumerate(evenly(benchmark.prompts(plan), PROMPTS)):
            _, cells = rows.setdefault(number, (prompt, [load_images(stores["before"], prompt, 1)]))
            cells.append(load_images(stores["after"], prompt, min(IMAGES, images_per_prompt(plan, "after"))))
    return CaseImages(name, [Image.open(path) for path in photos], [BASE, *variants], list(rows.values()))


def _img(image: Image.Image, alt: str) -> str:
    shown = image.convert("RGB")
    shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
    return img_tag(shown, alt)
