"""What distinguishes the benchmarks: the values of a job, the columns of the tables, and the published results."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

from dreambooth_trainer.benchmark.jobs import Case
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.planning.plan import Plan


@dataclass(frozen=True)
class Measured:
    """Values of the base model, of the trained model and of the real images, by the key of the column."""

    base: Mapping[str, float]
    trained: Mapping[str, float]
    real_images: Mapping[str, float]


@dataclass(frozen=True)
class Column:
    """A column: key in the JSON file, heading, and number of decimals."""

    key: str
    heading: str
    decimals: int = 3


COSTS: Final = (Column("trainingSeconds", "Training, s", 0), Column("publishedKilobytes", "Published, kB", 0))
"""Columns of all benchmarks: `trained` of a result lacks them, because they are fields of the result."""


@dataclass(frozen=True)
class Published:
    """Published results: a table, and what its numbers can be used for.

    Attributes:
        note: with the encoders of the paper.
        note_for_other_encoders: if the scores are on another scale.
    """

    headings: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    note: str
    note_for_other_encoders: str


@dataclass(frozen=True)
class Benchmark:
    """A kind of benchmark.

    Attributes:
        title: of the page.
        noun: what a job trains, and means are computed over: "subject".
        marker: name of an empty file in the folder of a benchmark, whose results are replaced.
        photos: name of the row with the values of the photos.
        per_case: keys of the columns in the table with a row for each subject or pair.
        claims: comparisons of a publication: first method, second, key; the first has the higher mean.
        prompts: of a plan, those whose images are measured and shown.
        measure: values of a job with these subjects that has finished, before its weights are deleted.
    """

    title: str
    noun: str
    marker: str
    photos: str
    columns: tuple[Column, ...]
    per_case: tuple[str, ...]
    claims: tuple[tuple[str, str, str], ...]
    published: Published
    prompts: Callable[[Plan], list[str]]
    measure: Callable[[Context, Case], Measured]

    @property
    def headings(self) -> dict[str, str]:
        """Headings without the arrows that show which direction is better, by key."""
        return {column.key: column.heading.rstrip(" ↑↓") for column in self.columns}
