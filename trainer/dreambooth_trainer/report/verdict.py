"""What the scores of a job mean: the normal range of each score, and findings in words with advice.

Pure functions of scores and settings. docs/reference/scores.md gives the reason for each rule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import isfinite
from statistics import fmean

from dreambooth_trainer.metrics.best_step import KEPT_CLIP_T
from dreambooth_trainer.metrics.scores import (
    PAPER_DREAMBOOTH,
    PAPER_REAL_IMAGES,
    PAPER_TEXTUAL_INVERSION,
    PromptScore,
    Scores,
    comparable_with_paper,
)
from dreambooth_trainer.report.contents import Finding, PromptRow, Range

MIN_IMAGES = 3
"""The paper trains on 3 to 5 images of a subject."""
LEARNED = 0.4
"""Part of the way from the base model's DINO or CLIP-I to that of the real images."""
COLLAPSED = 0.5
"""Part of the way from the base model's PRES to the DINO of the real images."""
KEPT_PROMPT_CLIP_T = 0.75
"""KEPT_CLIP_T for the images of one prompt. There is one image by the base model, so the margin is wider."""
SHOWN = 0.2
"""LEARNED for the images of one prompt: prompts that change the subject, such as "a purple dog", lower its DINO."""
KEPT_DIVERSITY = 0.5
"""Part of the base model's class diversity."""
MIN_DISTANCE = 0.05
"""If the real images score less than this above the base model, no limit is set between the two."""
LOSS_ROSE = 1.5
"""Mean loss of the last quarter of the steps, relative to the first quarter."""
MIN_LOSSES = 100
NOT_FOLLOWED = "does not follow the prompt"
NOT_SHOWN = "does not show the subject"
_SUBJECT = {"dino": "DINO", "clipI": "CLIP-I"}
_PROMPTS = {"clipT": "CLIP-T"}
_CLASS = {"pres": "PRES", "classDiversity": "class diversity"}


@dataclass(frozen=True)
class Course:
    """Settings of a training run, and its losses.

    Attributes:
        images: number of images of the subject.
        prior_loss_weight: None without prior preservation.
        steps: 0 if nothing was trained.
        changes_weights: False if only the embeddings of new tokens are trained: then the class cannot change.
        losses: instance loss of each step.
    """

    images: int
    steps: int
    learning_rate: float
    prior_loss_weight: float | None
    changes_weights: bool = True
    losses: Sequence[float] = ()


def normal_ranges(before: Scores, after: Scores) -> dict[str, Range]:
    """The normal range of scores after training, by the name of the metric. Other metrics have none."""
    base, real = before.values, after.real_images
    low: dict[str, float | None] = {name: _between(LEARNED, base.get(name), real.get(name)) for name in _SUBJECT}
    kept = KEPT_CLIP_T
    if comparable_with_paper(after.dino_encoder, after.clip_encoder):
        weak, bound = PAPER_TEXTUAL_INVERSION, PAPER_REAL_IMAGES
        parts = {"dino": weak.dino / bound.dino, "clipI": weak.clip_i / bound.clip_i}
        limits = {name: (limit, parts[name]) for name, limit in low.items() if limit is not None}
        low = {name: max(limit, part * real[name]) for name, (limit, part) in limits.items()}
        kept = _paper_clip_t()
    low["clipT"] = kept * base["clipT"] if "clipT" in base else None
    low["classDiversity"] = KEPT_DIVERSITY * base["classDiversity"] if "classDiversity" in base else None
    ranges = {name: Range(low=value) for name, value in low.items() if value is not None}
    # PRES is the DINO similarity of class images to the real images, so both have the same upper bound.
    high = _between(COLLAPSED, base.get("pres"), real.get("dino"))
    return ranges if high is None else {**ranges, "pres": Range(high=high)}


def findings(before: Scores | None, after: Scores | None, course: Course, subject: str = "") -> tuple[Finding, ...]:
    """Findings about one subject, problems first.

    Args:
        before, after: scores of the base model and of the trained model; None if the evaluation is disabled.
        subject: the instance prompt, if the model has several subjects.
    """
    found = [_few_images(course)]
    if before is not None and after is not None:
        ranges = normal_ranges(before, after)
        found += [
            _subject(before, after, ranges, course),
            _prompts(before, after, ranges, course),
            _class(before, after, ranges, course),
        ]
    known = [replace(finding, subject=subject) for finding in found if finding is not None]
    return tuple(sorted(known, key=lambda finding: finding.normal))


def prompt_rows(before: Scores, after: Scores) -> tuple[PromptRow, ...]:
    """The scores of each evaluation prompt, in the order of the prompts."""
    limit = _between(SHOWN, before.values.get("dino"), after.real_images.get("dino"))
    own = {row.prompt: row for row in before.prompts}
    return tuple(_prompt_row(own.get(row.prompt), row, limit) for row in after.prompts)


def _prompt_row(before: PromptScore | None, after: PromptScore, min_dino: float | None) -> PromptRow:
    failures: list[str] = []
    base = None if before is None else before.values.get("clipT")
    score, similarity = after.values.get("clipT"), after.values.get("dino")
    if base is not None and score is not None and score < KEPT_PROMPT_CLIP_T * base:
        failures.append(NOT_FOLLOWED)
    if similarity is not None and min_dino is not None and similarity < min_dino:
        failures.append(NOT_SHOWN)
    return PromptRow(after.prompt, after.images, similarity, base, score, tuple(failures))


def _between(part: float, base: float | None, real: float | None) -> float | None:
    """The limit between the base model's score and that of the real images; None if they are too close."""
    if base is None or real is None or real - base < MIN_DISTANCE:
        return None
    return base + part * (real - base)


def _paper_clip_t() -> float:
    """Halfway from DreamBooth to textual inversion in the paper's table, relative to DreamBooth."""
    own, other = PAPER_DREAMBOOTH.clip_t or 1, PAPER_TEXTUAL_INVERSION.clip_t or 1
    return (own + other) / 2 / own


def verdict_lines(found: Sequence[Finding]) -> list[str]:
    """The findings as lines of plain text, for consoles of any encoding."""
    lines: list[str] = []
    for finding in found:
        subject = f"{finding.subject}: " if finding.subject else ""
        advice = f". Advice: {finding.advice}" if finding.advice else ""
        lines.append(f"{'ok' if finding.normal else 'problem'}: {subject}{finding.text}{advice}.")
    return lines


def _few_images(course: Course) -> Finding | None:
    if course.images >= MIN_IMAGES:
        return None
    count = "1 image" if course.images == 1 else f"{course.images} images"
    text = f"The subject has {count}: poses and backgrounds of photos are learned as well"
    return Finding(normal=False, text=text, advice="use 3 to 5 images with different backgrounds")


def _quarters(losses: Sequence[float]) -> tuple[float, float]:
    """Mean loss of the first and the last quarter of the steps."""
    quarter = len(losses) // 4
    return fmean(losses[:quarter]), fmean(losses[-quarter:])


def _loss_rose(course: Course) -> bool:
    if not all(map(isfinite, course.losses)):
        return True
    if len(course.losses) < MIN_LOSSES:
        return False
    first, last = _quarters(course.losses)
    return last > LOSS_ROSE * first


def loss_finding(course: Course) -> Finding | None:
    """A finding if the loss rose, or is not finite."""
    if not _loss_rose(course):
        return None
    text = "Training diverged: the loss is not finite"
    if all(map(isfinite, course.losses)):
        first, last = _quarters(course.losses)
        text = f"The loss rose from {first:.3g} to {last:.3g} (means of the first and the last quarter of the steps)"
    return Finding(normal=False, text=text, advice=f"use a lower learning rate (now {course.learning_rate:g})")


def _subject(before: Scores, after: Scores, ranges: Mapping[str, Range], course: Course) -> Finding | None:
    scored = _limited(after, ranges, _SUBJECT)
    if not scored:
        return None
    failed, count = _failed(before, after, NOT_SHOWN, "do not show the subject")
    bad = _outside(after, ranges, scored)
    if not bad:
        changes = ", ".join(_change(before, after, name, label) for name, label in scored.items())
        return Finding(normal=True, text=f"The subject is learned: {changes}{count}", prompts=failed)
    numbers = ", ".join(f"{label} {after.values[name]:.3f}, normal is {ranges[name]}" for name, label in bad.items())
    advice = f"train for more steps (now {course.steps})" if course.steps else "fine-tune the model, method: LoRA"
    if course.steps and (_loss_rose(course) or _outside(after, ranges, _limited(after, ranges, _PROMPTS))):
        advice = f"use a lower learning rate (now {course.learning_rate:g})"
    text = f"The subject is not learned well: {numbers}{count}"
    return Finding(normal=False, text=text, advice=advice, prompts=failed)


def _prompts(before: Scores, after: Scores, ranges: Mapping[str, Range], course: Course) -> Finding | None:
    scored = _limited(after, ranges, _PROMPTS)
    if not scored:
        return None
    failed, count = _failed(before, after, NOT_FOLLOWED, "are not followed")
    if not _outside(after, ranges, scored):
        text = f"Prompts are followed: {_change(before, after, 'clipT', 'CLIP-T')}{count}"
        return Finding(normal=True, text=text, prompts=failed)
    was, now = before.values["clipT"], after.values["clipT"]
    text = f"Prompt fidelity fell by {was - now:.2f} (CLIP-T {was:.3f} to {now:.3f}){count}"
    advice = f"use fewer steps (now {course.steps}) or a lower learning rate (now {course.learning_rate:g})"
    if not course.steps:
        advice = "set a lower training.imagePrompt.scale"
    return Finding(normal=False, text=text, advice=advice, prompts=failed)


def _failed(before: Scores, after: Scores, failure: str, rule: str) -> tuple[tuple[str, ...], str]:
    """The prompts with a failure, and the end of a sentence that counts them, which is empty without any."""
    rows = prompt_rows(before, after)
    failed = tuple(row.prompt for row in rows if failure in row.failures)
    return failed, f"; {len(failed)} of {len(rows)} prompts {rule}" if failed else ""


def _class(before: Scores, after: Scores, ranges: Mapping[str, Range], course: Course) -> Finding | None:
    scored = _limited(after, ranges, _CLASS)
    if not scored or not course.changes_weights:
        return None
    numbers = ", ".join(_change(before, after, name, label) for name, label in scored.items())
    if not _outside(after, ranges, scored):
        return Finding(normal=True, text=f"The class is preserved: {numbers}")
    advice = "enable prior preservation (spec.priorPreservation.mode: Images)"
    if course.prior_loss_weight is not None:
        weight = f"raise spec.priorPreservation.lossWeight (now {course.prior_loss_weight:g})"
        advice = f"{weight}, or use fewer steps (now {course.steps})"
    return Finding(normal=False, text=f"Other objects of the class look like the subject: {numbers}", advice=advice)


def _limited(after: Scores, ranges: Mapping[str, Range], labels: Mapping[str, str]) -> dict[str, str]:
    """Those metrics, with their labels, that were computed and have a normal range."""
    return {name: label for name, label in labels.items() if name in after.values and name in ranges}


def _outside(after: Scores, ranges: Mapping[str, Range], labels: Mapping[str, str]) -> dict[str, str]:
    """Those metrics, with their labels, whose score is not in the normal range."""
    return {name: label for name, label in labels.items() if not ranges[name].contains(after.values[name])}


def _change(before: Scores, after: Scores, name: str, label: str) -> str:
    return f"{label} {after.values[name]:.3f} ({before.values[name]:.3f} before)"
