"""Scores of one model: the content of scores.json, the check of thresholds, and the results of the paper."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

from pydantic import BaseModel, ConfigDict, FiniteFloat
from pydantic.alias_generators import to_camel

from dreambooth_api.errors import ValidationIssue
from dreambooth_api.job import DEFAULT_CLIP, DEFAULT_DINO, Thresholds
from dreambooth_api.metrics import METRICS


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True)


class PromptScore(_Frozen):
    """Scores of the images of one prompt.

    Attributes:
        prompt: the prompt without the identifier.
        images: number of images.
        values: by the name of the metric, as in `dreambooth_api.metrics`.
    """

    prompt: str
    images: int
    values: Mapping[str, FiniteFloat]


class Scores(_Frozen):
    """Scores of one model.

    Attributes:
        values: by the name of the metric. A metric that was not computed is missing. DIV is a mean LPIPS distance,
            the other two diversities are means of 1 - cosine similarity (0 to 2), and the rest are mean cosine
            similarities (-1 to 1).
        real_images: upper bounds of subject fidelity, by the name of the metric: the mean similarity of real images
            among each other. Empty for a single image.
        lpips_network: network of DIV, or empty if DIV was not computed.
        without_lpips: why DIV was not computed although it was wanted, or empty.
        subjects: by identifier, if the model has several subjects. `values` are then their means.
    """

    values: Mapping[str, FiniteFloat]
    real_images: Mapping[str, FiniteFloat] = {}
    dino_encoder: str = ""
    clip_encoder: str = ""
    lpips_network: str = ""
    without_lpips: str = ""
    prompts: tuple[PromptScore, ...] = ()
    subjects: Mapping[str, Scores] = {}


@dataclass(frozen=True)
class PaperRow:
    """A row of the paper's table 1: means over 30 subjects."""

    name: str
    dino: float
    clip_i: float
    clip_t: float | None


PAPER_REAL_IMAGES = PaperRow("Real images", 0.774, 0.885, None)
PAPER_DREAMBOOTH = PaperRow("DreamBooth (Stable Diffusion)", 0.668, 0.803, 0.305)
PAPER_TEXTUAL_INVERSION = PaperRow("Textual Inversion (Stable Diffusion)", 0.569, 0.780, 0.255)
# Comparable with scores of the paper's encoders only.
PAPER: tuple[PaperRow, ...] = (
    PAPER_REAL_IMAGES,
    PaperRow("DreamBooth (Imagen)", 0.696, 0.812, 0.306),
    PAPER_DREAMBOOTH,
    PAPER_TEXTUAL_INVERSION,
)
LATER: tuple[PaperRow, ...] = (
    PaperRow("Custom Diffusion (Stable Diffusion)", 0.643, 0.790, 0.305),
    PaperRow("BLIP-Diffusion, fine-tuned (Stable Diffusion)", 0.670, 0.805, 0.302),
    PaperRow("BLIP-Diffusion, no tuning (Stable Diffusion)", 0.594, 0.779, 0.300),
    PaperRow("ELITE, no tuning (Stable Diffusion)", 0.621, 0.771, 0.293),
    PaperRow("IP-Adapter, no tuning (Stable Diffusion)", 0.667, 0.813, 0.289),
    PaperRow("SuTI, no tuning (Imagen)", 0.741, 0.819, 0.304),
)
"""Later methods on the paper's dataset, as listed in table 2 of DreamCache (arXiv 2411.17786)."""


def comparable_with_paper(dino: str, clip: str) -> bool:
    """Whether two encoders are those of the paper, by Hub ID or by a folder of the same name.

    Scores of other encoders are on another scale.
    """
    return all(Path(name).name == Path(paper).name for name, paper in ((dino, DEFAULT_DINO), (clip, DEFAULT_CLIP)))


def mean_scores(subjects: Mapping[str, Scores]) -> Scores:
    """Scores of a model from those of its subjects by identifier. A metric is a mean if all subjects have it."""
    first, *others = subjects.values()
    if not others:
        return first
    values = _means([scores.values for scores in subjects.values()])
    real_images = _means([scores.real_images for scores in subjects.values()])
    changes = {"values": values, "real_images": real_images, "prompts": (), "subjects": dict(subjects)}
    return first.model_copy(update=changes)


def _means(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """Mean of each metric that all have."""
    return {name: fmean(each[name] for each in scores) for name in scores[0] if all(name in each for each in scores)}


def failed_thresholds(scores: Scores, thresholds: Thresholds) -> list[ValidationIssue]:
    """One issue for each score below its threshold. A score equal to its threshold passes.

    Each subject must reach the thresholds.
    """
    if scores.subjects:
        return [
            replace(issue, rule=f"{issue.rule} for the subject {identifier!r}")
            for identifier, own in scores.subjects.items()
            for issue in failed_thresholds(own, thresholds)
        ]
    issues: list[ValidationIssue] = []
    for metric in METRICS:
        minimum: float | None = getattr(thresholds, metric.field) if metric.threshold else None
        score = scores.values.get(metric.name)
        if minimum is not None and (score is None or score < minimum):
            issues.append(
                ValidationIssue(
                    path=f"spec.evaluation.thresholds.{metric.name}",
                    value=minimum,
                    rule="was not computed" if score is None else f"the trained model scores {score:.3f}",
                    remedy="train longer (spec.training.steps), use clearer images, or set a lower threshold",
                )
            )
    return issues
