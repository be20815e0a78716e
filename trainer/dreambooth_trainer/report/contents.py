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
    """Images of one prompt by the base model and by the trained model. Images at the same index have the same noise."""

    prompt: str
    before: Images
    after: Images
    failures: tuple[str, ...] = ()
    """What is wrong with the images after training, as in `PromptRow`."""

    @property
    def pairs(self) -> int:
        """Number of images that both models generated from the same noise."""
        return min(len(self.before), len(self.after))


@dataclass(frozen=True)
class Range:
    """The normal range of a score. None: no limit."""

    low: float | None = None
    high: float | None = None

    def contains(self, value: float) -> bool:
        """Whether a score is within the range. Its limits are."""
        return (self.low is None or value >= self.low) and (self.high is None or value <= self.high)

    def __str__(self) -> str:
        return f"at least {self.low:.3f}" if self.low is not None else f"at most {self.high:.3f}"


@dataclass(frozen=True)
class ScoreRow:
    """One score before and after training."""

    name: str
    meaning: str
    """One or two sentences for readers who do not know the paper."""
    before: float | None
    after: float | None
    real_images: float | None = None
    """The score of the subject's images among each other, an upper bound. None if it is not defined."""
    normal: Range | None = None
    """What is normal for a fine-tuned model. None if no range is known."""

    @property
    def state(self) -> Literal["normal", "abnormal", "unknown"]:
        """Whether `after` is in the normal range."""
        if self.normal is None or self.after is None:
            return "unknown"
        return "normal" if self.normal.contains(self.after) else "abnormal"

    @property
    def direction(self) -> Literal["higher", "lower", "same", "unknown"]:
        """Comparison of `after` with `before`."""
        if self.before is None or self.after is None:
            return "unknown"
        if abs(self.after - self.before) < TOLERANCE:
            return "same"
        return "higher" if self.after > self.before else "lower"


@dataclass(frozen=True)
class PromptRow:
    """The scores of the images of one evaluation prompt."""

    prompt: str
    """Without the identifier."""
    images: int
    dino: float | None
    clip_t_before: float | None
    clip_t: float | None
    failures: tuple[str, ...] = ()
    """What is wrong with these images, for example "does not follow the prompt"."""


@dataclass(frozen=True)
class Finding:
    """One statement about the trained model, with the numbers that it follows from."""

    normal: bool
    """Whether a fine-tuned model is expected to be like this."""
    text: str
    advice: str = ""
    """What to change, if it is not normal."""
    prompts: tuple[str, ...] = ()
    """Evaluation prompts that it is about."""
    subject: str = ""
    """The instance prompt of the subject that it is about, if the model has several."""


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
class ToolFile:
    """A published file that ComfyUI and AUTOMATIC1111 load."""

    file: str
    comfyui: str
    """Its folder in ComfyUI, with the name of the file there."""
    a1111: str
    """Its folder in AUTOMATIC1111, with the name of the file there."""
    note: str
    """How to use it."""
    prompt: str
    """An example."""


@dataclass(frozen=True)
class SubjectReport:
    """What the report and the model card show of one subject."""

    instance_prompt: str
    """For example "a sks dog"."""
    class_prompt: str
    """For example "a dog". Its images show language drift."""
    trigger: str
    """The words that stand for the subject in a prompt, for example "sks dog"."""
    images: Images
    comparison: Comparison
    """Images of the instance prompt."""
    prompt_comparisons: tuple[Comparison, ...]
    """Images of the evaluation prompts."""
    class_comparison: Comparison
    """Images of the class prompt."""
    class_images: Images = ()
    """Some of the generated class images that were used for training."""
    own_class_images: Images = ()
    """Some of those that the job provided. Like `images`, they are not published."""
    num_class_images: int = 0
    """Number of images of the class prompt used for training; 0 without prior preservation."""
    num_own_class_images: int = 0
    """Number of them that the job provided."""
    scores: tuple[ScoreRow, ...] = ()
    """Scores of this subject, if there are several."""
    prompts: tuple[PromptRow, ...] = ()
    """Scores of each evaluation prompt."""


@dataclass(frozen=True)
class ValidationRow:
    """The images of one validation prompt from the same noise, one for each step of `ValidationCourse.steps`."""

    prompt: str
    images: Images


@dataclass(frozen=True)
class ValidationCourse:
    """Images and scores of the validations during training."""

    steps: tuple[int, ...]
    rows: tuple[ValidationRow, ...]
    scores_svg: str = ""
    """From `curves.score_curves`. It is not escaped, because it contains no user input."""
    selected: int | None = None
    """The step whose weights are published, if it was selected by the scores."""

    @property
    def labels(self) -> tuple[str, ...]:
        """A label for each step."""
        return tuple(f"step {step}{', selected' if step == self.selected else ''}" for step in self.steps)


@dataclass(frozen=True)
class Report:
    """Everything that the report and the model card of one job show."""

    name: str
    base_model: str
    pipeline_class: str
    """Class of diffusers that the model is for."""
    created: datetime
    subjects: tuple[SubjectReport, ...]
    scores: tuple[ScoreRow, ...] = ()
    """Means over the subjects."""
    findings: tuple[Finding, ...] = ()
    """What the scores and the losses mean, problems first."""
    encoders: str = ""
    """Names of the networks used for scoring."""
    references: tuple[ReferenceRow, ...] = ()
    selection: str = ""
    """Which step was selected, or that none could be, and why; empty if the job asks for the last step."""
    curves_svg: str = ""
    """From `curves.loss_curves`. It is not escaped, because it contains no user input."""
    course: ValidationCourse | None = None
    """None without validation."""
    phases: tuple[PhaseTime, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    loading_code: str = ""
    tool_files: tuple[ToolFile, ...] = ()
