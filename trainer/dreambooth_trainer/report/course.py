"""The course of a training: images and scores of its validations, by step."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image

from dreambooth_api.metrics import METRICS
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.report.contents import ValidationCourse, ValidationRow
from dreambooth_trainer.report.curves import score_curves
from dreambooth_trainer.report.grids import Row, labeled_grid
from dreambooth_trainer.sampling.validation_set import validation_requests
from dreambooth_trainer.store.validations import Validations

MAX_COLUMNS = 10
MAX_SIDE = 256  # px


def collect_course(plan: Plan, validations: Validations, selected: int | None = None) -> ValidationCourse | None:
    """The steps that were validated, at most MAX_COLUMNS with images of at most MAX_SIDE; None without any.

    Args:
        selected: the step whose weights are published, if it was selected by the scores. It is shown in any case.
    """
    steps = shown_steps(validations.steps(), MAX_COLUMNS, selected)
    if not steps:
        return None
    columns = [[_thumbnail(image) for image in validations.images(step)] for step in steps]
    rows = [
        ValidationRow(request.prompt, tuple(images[number] for images in columns))
        for number, request in enumerate(validation_requests(plan))
    ]
    labels = {metric.name: metric.label for metric in METRICS}
    scores = {
        step: {labels[name]: value for name, value in values.items()} for step, values in validations.scores().items()
    }
    return ValidationCourse(tuple(steps), tuple(rows), score_curves(scores, selected), selected)


def _thumbnail(image: Image.Image) -> Image.Image:
    """An image as small as it is shown: a course may have hundreds of them in memory."""
    image.thumbnail((MAX_SIDE, MAX_SIDE), Image.Resampling.LANCZOS)
    return image


def course_grid(course: ValidationCourse) -> Image.Image:
    """The images with a row for each prompt and a column for each step."""
    rows = [Row(row.prompt, tuple((image,) for image in row.images)) for row in course.rows]
    return labeled_grid(rows, headings=course.labels)


def shown_steps(steps: Sequence[int], count: int, selected: int | None = None) -> list[int]:
    """At most `count` of the steps, evenly spread, with the first, the last and the selected one."""
    if len(steps) <= count:
        return list(steps)
    shown = [steps[round(index * (len(steps) - 1) / (count - 1))] for index in range(count)]
    if selected is not None and selected in steps and selected not in shown:
        # In place of the nearest one that is neither the first nor the last.
        shown.remove(min(shown[1:-1], key=lambda step: abs(step - selected)))
        shown = sorted([*shown, selected])
    return shown
