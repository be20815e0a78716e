"""The scores of one model: measured from images, kept as JSON, held against thresholds and the paper's table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

import torch
from PIL import Image
from pydantic import BaseModel, ConfigDict, FiniteFloat

from dreambooth_api.errors import ValidationIssue
from dreambooth_api.job import Thresholds
from dreambooth_trainer.metrics import fidelity
from dreambooth_trainer.metrics.encoders import Encoders

DIVERSITY_DISTANCE = "1 - cosine (DINO)"


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class PromptScore(_Frozen):
    """Scores of the images of one prompt."""

    prompt: str
    """Without the identifier."""
    images: int
    dino: FiniteFloat
    clip_i: FiniteFloat
    clip_t: FiniteFloat


class Scores(_Frozen):
    """All are means of cosines (-1 to 1) except the two diversities (distances, 0 to 2)."""

    dino: FiniteFloat
    """Subject fidelity: generated against real images, DINO features. Higher is better."""
    clip_i: FiniteFloat
    """Subject fidelity with CLIP image features. Higher is better."""
    clip_t: FiniteFloat
    """Prompt fidelity. Higher is better."""
    pres: FiniteFloat | None = None
    """Prior preservation: class images against the subject, DINO features. HIGHER IS WORSE."""
    div: FiniteFloat | None = None
    """Diversity of the subject's images of the same prompt. Higher is better."""
    div_class: FiniteFloat | None = None
    """Diversity of the class images among themselves: what is left of the prior. Higher is better."""
    div_distance: str = DIVERSITY_DISTANCE
    dino_encoder: str = ""
    clip_encoder: str = ""
    prompts: tuple[PromptScore, ...] = ()

    def to_json(self) -> str:
        """Indented JSON; not finite values were refused on construction."""
        return self.model_dump_json(indent=2)

    @classmethod
    def from_json(cls, text: str | bytes) -> Scores:
        """Inverse of `to_json`; raises pydantic's ValidationError on anything else."""
        return cls.model_validate_json(text)


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table 1 (mean over 30 subjects)."""

    name: str
    dino: float
    clip_i: float
    clip_t: float | None


# Show beside scores of the paper's own encoders only (`Encoders.comparable_with_paper`).
PAPER: tuple[PaperRow, ...] = (
    PaperRow("Real images", 0.774, 0.885, None),
    PaperRow("DreamBooth (Imagen)", 0.696, 0.812, 0.306),
    PaperRow("DreamBooth (Stable Diffusion)", 0.668, 0.803, 0.305),
    PaperRow("Textual Inversion (Stable Diffusion)", 0.569, 0.780, 0.255),
)


@dataclass(frozen=True)
class PromptImages:
    """Images of the subject drawn for one prompt."""

    text: str
    """What CLIP compares with: the prompt without the identifier, "a dog on the beach"."""
    images: Sequence[Image.Image]


def measure(
    encoders: Encoders,
    real: Sequence[Image.Image],
    generated: Sequence[PromptImages],
    class_images: Sequence[Image.Image] = (),
) -> Scores:
    """Score one model.

    Args:
        real: the subject's images, at least one.
        generated: the subject in each prompt, at least one image a prompt. The paper: 25 prompts x 4 images.
        class_images: images of the class prompt ("a dog") by the same model; without them PRES is None.
    """
    pictures = [image for group in generated for image in group.images]
    sizes = [len(group.images) for group in generated]
    real_dino_MD, real_clip_MD = encoders.dino.encode(real), encoders.clip.encode(real)
    dino = encoders.dino.encode(pictures).split(sizes)
    clip = encoders.clip.encode(pictures).split(sizes)
    texts_GD = encoders.clip.encode_text([group.text for group in generated])
    table = tuple(
        PromptScore(
            prompt=group.text,
            images=len(group.images),
            dino=fidelity.subject_fidelity(dino_ND, real_dino_MD),
            clip_i=fidelity.subject_fidelity(clip_ND, real_clip_MD),
            clip_t=fidelity.prompt_fidelity(clip_ND, text_D.expand_as(clip_ND)),
        )
        for group, dino_ND, clip_ND, text_D in zip(generated, dino, clip, texts_GD, strict=True)
    )
    class_ND = encoders.dino.encode(class_images) if class_images else None
    return Scores(
        dino=fidelity.subject_fidelity(torch.cat(dino), real_dino_MD),
        clip_i=fidelity.subject_fidelity(torch.cat(clip), real_clip_MD),
        clip_t=_weighted([row.clip_t for row in table], sizes),
        pres=None if class_ND is None else fidelity.prior_preservation(class_ND, real_dino_MD),
        div=fidelity.diversity(dino),
        div_class=None if class_ND is None else fidelity.diversity([class_ND]),
        dino_encoder=encoders.dino.name,
        clip_encoder=encoders.clip.name,
        prompts=table,
    )


def failed_thresholds(scores: Scores, thresholds: Thresholds) -> list[ValidationIssue]:
    """One issue for each score below its threshold; reaching it exactly is enough."""
    issues: list[ValidationIssue] = []
    for field, key in (("dino", "dino"), ("clip_i", "clipI"), ("clip_t", "clipT")):
        least: float | None = getattr(thresholds, field)
        got: float = getattr(scores, field)
        if least is not None and got < least:
            issues.append(
                ValidationIssue(
                    path=f"spec.evaluation.thresholds.{key}",
                    value=least,
                    rule=f"the trained model scores {got:.3f}",
                    remedy="train longer (spec.training.steps), give clearer images, or write a lower threshold",
                )
            )
    return issues


def _weighted(means: Sequence[float], sizes: Sequence[int]) -> float:
    # CLIP-T is a mean over images: prompts with more images weigh more.
    return fmean(means, weights=sizes)
