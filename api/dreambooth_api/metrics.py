"""The metrics of an evaluation: one row for each.

Status, thresholds, the trainer's scores and the rows of the report are made from this table. A new metric is one row
here and one function in the trainer's `metrics.measure`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from pydantic.alias_generators import to_snake


@dataclass(frozen=True)
class Metric:
    """One metric.

    Attributes:
        name: key in the status, in progress messages and in scores.json, camelCase.
        label: name that people read, in the report and in printer columns.
        quantity: what it measures, as a noun phrase for field descriptions.
        meaning: what a high or low value means, for readers who do not know the paper. One or two sentences.
        higher_is_better: None if neither direction is good or bad by itself.
        threshold: whether a job can require a minimum, in `spec.evaluation.thresholds`.
        printer_column: whether `kubectl get` prints it.
    """

    name: str
    label: str
    quantity: str
    meaning: str
    higher_is_better: bool | None
    threshold: bool = False
    printer_column: bool = False

    @property
    def field(self) -> str:
        """Name of its field in Python, snake_case."""
        return to_snake(self.name)

    @property
    def description(self) -> str:
        """Description of its field in the status."""
        direction = {True: " Higher is better.", False: " Lower is better.", None: ""}[self.higher_is_better]
        return f"{self.label}: {self.quantity}.{direction}"


METRICS: Final = (
    Metric(
        "dino",
        "DINO",
        "subject fidelity",
        "Similarity to your images in detail: is it the same subject?",
        higher_is_better=True,
        threshold=True,
        printer_column=True,
    ),
    Metric(
        "clipI",
        "CLIP-I",
        "subject fidelity",
        "Overall similarity to your images.",
        higher_is_better=True,
        threshold=True,
    ),
    Metric(
        "clipT",
        "CLIP-T",
        "prompt fidelity",
        "Similarity of each image to its prompt.",
        higher_is_better=True,
        threshold=True,
        printer_column=True,
    ),
    Metric(
        "pres",
        "PRES",
        "similarity of class images to the subject",
        "Similarity of class images to your subject. A high value means that the class has collapsed onto the subject.",
        higher_is_better=False,
    ),
    Metric(
        "div",
        "DIV",
        "diversity of images of the subject with the same prompt, by LPIPS",
        "Mean LPIPS distance of images of your subject with the same prompt, as in the paper. A low value means that "
        "poses and compositions repeat.",
        higher_is_better=True,
    ),
    Metric(
        "subjectDiversity",
        "Subject diversity",
        "diversity of images of the subject with the same prompt, by DINO features",
        "Mean distance of DINO features of images of your subject with the same prompt. Not comparable with DIV.",
        higher_is_better=None,
    ),
    Metric(
        "classDiversity",
        "Class diversity",
        "diversity of class images, by DINO features",
        "Mean distance of DINO features of class images. A low value means that the model has lost variety of the "
        "class.",
        higher_is_better=True,
    ),
)
