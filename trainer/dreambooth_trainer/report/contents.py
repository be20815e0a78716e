"""Content of a report, as plain values. `collect` fills them in, `page` and `card` render them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from PIL import Image

Images = tuple[Image.Image, ...]

TOLERANCE = 0.01
"""Scores that differ by less are shown as equal: the difference is within the noise of 100 images."""


@dataclass(frozen=True)
class Comparison:
    """Images of one prompt by the base model and by the trained model, from the same noise."""

    prompt: str
    before: Images
    after: Images


@dataclass(frozen=True)
class ScoreRow:
    """One score before and after training."""

    name: str
    meaning: str
    """One or two sentences for readers who do not know the paper."""
    before: float | None
    after: float | None
    higher_is_better: bool | None
    """None: neither direction is good or bad by itself."""
    real_images: float | None = None
    """The score of the subject's images among each other, an upper bound. None if it is not defined."""

    @property
    def change(self) -> Literal["better", "worse", "same", "changed", "unknown"]:
        """Comparison of `after` with `before`."""
        if self.before is None or self.after is None:
            return "unknown"
        difference = self.after - self.before
        if abs(difference) < TOLERANCE:
            return "same"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (difference > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class ReferenceRow:
    """A published result for comparison. None: not reported."""

    name: str
    dino: float
    clip_i: float
    clip_t: float | None


@dataclass(frozen=True)
class PhaseTime:
    """Duration of one phase."""

    name: str
    seconds: float
    note: str = ""
    """For example "320 of 1000 reused"."""


@dataclass(frozen=True)
class SubjectReport:
    """What the report and the model card show of one subject."""

    instance_prompt: str
    """For example "a sks dog"."""
    class_prompt: str
    """For example "a dog". Its images show language drift."""
    images: Images
    comparison: Comparison
    """Images of the instance prompt."""
    prompt_comparisons: tuple[Comparison, ...]
    """Images of the evaluation prompts."""
    class_comparison: Comparison
    """Images of the class prompt."""
    class_images: Images = ()
    """Some of the class images that were used for training."""
    num_class_images: int = 0
    """Number of images of the class prompt used for training; 0 without prior preservation."""
    scores: tuple[ScoreRow, ...] = ()
    """Scores of this subject, if there are several."""


@dataclass(frozen=True)
class Report:
    """Everything that the report and the model card of one job show."""

    name: str
    base_model: str
    created: datetime
    subjects: tuple[SubjectReport, ...]
    scores: tuple[ScoreRow, ...] = ()
    """Means over the subjects."""
    encoders: str = ""
    """Names of the networks used for scoring."""
    references: tuple[ReferenceRow, ...] = ()
    curves_svg: str = ""
    """From `curves.loss_curves`. It is not escaped, because it contains no user input."""
    phases: tuple[PhaseTime, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    loading_code: str = ""
