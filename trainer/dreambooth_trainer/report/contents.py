"""What a report shows: pictures, numbers and words. Plain values; whoever ran the job fills them in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Literal

from PIL import Image

Images = tuple[Image.Image, ...]

SAME = 0.01
"""Scores that differ by less are shown as equal: 100 images do not tell them apart."""


@dataclass(frozen=True)
class Comparison:
    """One prompt drawn by the base model and by the trained one, ideally from the same noise."""

    prompt: str
    before: Images
    after: Images


@dataclass(frozen=True)
class ScoreRow:
    """One score before and after the training."""

    name: str
    meaning: str
    """One line for somebody who has not read the paper."""
    before: float | None
    after: float | None
    higher_is_better: bool | None
    """None: neither direction is good or bad by itself."""

    @property
    def verdict(self) -> Literal["better", "worse", "same", "changed", "unknown"]:
        """How `after` stands to `before`."""
        if self.before is None or self.after is None:
            return "unknown"
        change = self.after - self.before
        if abs(change) < SAME:
            return "same"
        if self.higher_is_better is None:
            return "changed"
        return "better" if (change > 0) == self.higher_is_better else "worse"


@dataclass(frozen=True)
class ReferenceRow:
    """A published result to compare with; None where there is none."""

    name: str
    dino: float
    clip_i: float
    clip_t: float | None


@dataclass(frozen=True)
class PhaseTime:
    """How long a part of the job took."""

    name: str
    seconds: float
    note: str = ""
    """For example "320 of 1000 reused"."""


@dataclass(frozen=True)
class Report:
    """One job, ready to be looked at."""

    name: str
    subject_prompt: str
    """The prompt that names the subject: "a sks dog"."""
    class_prompt: str
    """The prompt of the class, "a dog", whose images show language drift."""
    base_model: str
    created: datetime
    subject_images: Images
    subject: Comparison
    contexts: tuple[Comparison, ...]
    drift: Comparison
    """The class prompt before and after: it must not have become the subject."""
    class_images: Images = ()
    """A sample of the class images that the training kept in view."""
    num_class_images: int = 0
    """0: trained without prior preservation."""
    scores: tuple[ScoreRow, ...] = ()
    encoders: str = ""
    """Names of the encoders that scored."""
    references: tuple[ReferenceRow, ...] = ()
    curves_svg: str = ""
    """From `curves.loss_curves`; trusted, as it holds no words of a user."""
    phases: tuple[PhaseTime, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)
    loading_code: str = ""


def loading_code(model: str, prompt: str, *, adapter: bool = False) -> str:
    """Python that draws one picture with the published model.

    Args:
        model: folder or hub id of what was published.
        prompt: a prompt that names the subject.
        adapter: the folder holds a LoRA adapter as well.
    """
    # repr(): prompts and paths may contain quotes.
    lines = [
        "from diffusers import DiffusionPipeline",
        f"pipeline = DiffusionPipeline.from_pretrained({model!r})",
    ]
    if adapter:
        lines.append(f"# The adapter alone, on a pipeline of the base model: pipeline.load_lora_weights({model!r})")
    return "\n".join([*lines, f"pipeline({prompt!r}).images[0].save('picture.png')"])
