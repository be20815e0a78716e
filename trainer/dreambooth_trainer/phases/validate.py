"""Scores the images of a validation, and draws the course of a training."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

from PIL import Image

from dreambooth_trainer.metrics.prompts import fill_template
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.validations import Validations

# Heavy libraries are imported inside functions: the driver does not need them.
if TYPE_CHECKING:
    from dreambooth_trainer.metrics.encoders import Encoders

# One image per prompt has no diversity, and there are no images of the class prompt.
METRICS = ("dino", "clipI", "clipT")


class Scorer:
    """Scores validations with the encoders of the evaluation, on the CPU: GPUs are in use by the training.

    A Ray actor. The encoders are loaded by its first call.
    """

    def __init__(self, plan: Plan, folder: JobFolder, encoder_commits: Mapping[str, str]) -> None:
        self._plan, self._folder, self._commits = plan, folder, encoder_commits
        self._encoders: Encoders | None = None

    def score(self, images: list[Image.Image]) -> dict[str, float]:
        """Mean scores over the subjects, by the name of the metric.

        Args:
            images: of one step, in the order of `validation_requests`.
        """
        import torch

        from dreambooth_trainer.metrics.encoders import load_encoders
        from dreambooth_trainer.metrics.measure import PromptImages, measure
        from dreambooth_trainer.metrics.scores import mean_scores

        plan = self._plan
        validation = plan.spec.training.validation
        assert validation is not None, "there would be no images"
        torch.set_num_threads(1)  # training has the other cores
        if self._encoders is None:
            self._encoders = load_encoders(plan.dino, plan.clip, "cpu", self._commits, lpips=False)
        scores, count = {}, len(validation.prompts)
        for index, subject in enumerate(plan.subjects):
            own = images[index * count : (index + 1) * count]
            # CLIP does not know the identifier.
            texts = [fill_template(template, subject.class_) for template in validation.prompts]
            groups = [PromptImages(text, [image]) for text, image in zip(texts, own, strict=True)]
            real = [Image.open(path) for path in self._folder.photos_of(index)]
            scores[subject.identifier] = measure(self._encoders, real, groups)
        values = mean_scores(scores).values
        return {name: values[name] for name in METRICS}


def draw_course(plan: Plan, validations: Validations, selected: int | None = None) -> None:
    """Write the grid of the images so far.

    Args:
        selected: the step whose weights are published, if it is known and not the last one.
    """
    from dreambooth_trainer.report.course import collect_course, course_grid

    if (course := collect_course(plan, validations, selected)) is not None:
        buffer = io.BytesIO()
        course_grid(course).save(buffer, "PNG")
        atomic_write(validations.course, buffer.getvalue())
