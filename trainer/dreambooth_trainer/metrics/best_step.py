"""Selects the step whose weights are published with `output.select: Best`, from the scores of validations. Pure.

Of the validated steps that keep at least KEPT_CLIP_T of the base model's CLIP-T on the same prompts, the best one has
the highest DINO. If there is none, it is the step with the highest CLIP-T. Of equal steps, the earlier one is better.
The base model is never selected, and a score that is not a number is the lowest one. With patience N, validations
count only until N of them in a row were not better than the best one before.

CLIP-T is compared with the base model's, and DINO only between steps, so the scale of an encoder does not matter.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEPT_CLIP_T = 0.85
"""Part of the base model's CLIP-T. With less, prompts are no longer followed."""

StepScores = Mapping[int, Mapping[str, float]]
"""Scores by step and by the name of the metric. Step 0 is the base model."""


@dataclass(frozen=True)
class Standing:
    """The best step so far.

    Attributes:
        best: None before the first step is scored.
        validated: the steps that it was selected from, in order. Of the other steps, only later ones may become best.
        decided: whether it is final: all validations are scored, or patience has ended.
    """

    best: int | None
    validated: tuple[int, ...]
    decided: bool


def standing(scores: StepScores, validated: Sequence[int], patience: int | None) -> Standing:
    """The best of the steps that are scored without a gap from the first one.

    The result depends on the scores only, not on the order in which they are known.

    Args:
        validated: all steps that are or will be validated, in order, without 0.
        patience: number of validations in a row without a better one after which the rest does not count.
    """
    best, counted, worse = None, list[int](), 0
    for step in validated:
        if 0 not in scores or step not in scores:
            return Standing(best, tuple(counted), decided=False)
        counted.append(step)
        worse += 1
        if best is None or _rank(scores, step) > _rank(scores, best):
            best, worse = step, 0
        if patience is not None and worse >= patience:
            break
    return Standing(best, tuple(counted), decided=best is not None)


def explain(scores: StepScores, final: Standing, steps: int) -> str:
    """Which step was selected, and why: one sentence without a full stop.

    Args:
        final: a standing that is decided.
        steps: number of steps of the job.
    """
    best, percent = final.best, f"{KEPT_CLIP_T:.0%}".replace("%", " %")
    assert best is not None, "nothing is decided without validations"
    kept = [step for step in final.validated if _keeps_prompts(scores, step)]
    if kept:
        reason = (
            f"its DINO ({scores[best]['dino']:.3f}) is the highest of the {len(kept)} of {len(final.validated)} "
            f"validations that keep at least {percent} of the base model's CLIP-T"
        )
    else:
        reason = (
            f"no validation keeps {percent} of the base model's CLIP-T ({scores[0]['clipT']:.3f}), and its CLIP-T "
            f"({scores[best]['clipT']:.3f}) is the highest of {len(final.validated)}"
        )
    last = final.validated[-1]
    early = f", and the validations after it until step {last} were not better" if last < steps else ""
    return f"Step {best} of {steps} was selected: {reason}{early}"


def _rank(scores: StepScores, step: int) -> tuple[bool, float]:
    """Sorts steps from worse to better."""
    keeps = _keeps_prompts(scores, step)
    value = scores[step]["dino" if keeps else "clipT"]
    # Comparisons with NaN are always false: of the steps that follow, none would be better.
    return keeps, -math.inf if math.isnan(value) else value


def _keeps_prompts(scores: StepScores, step: int) -> bool:
    return scores[step]["clipT"] >= KEPT_CLIP_T * scores[0]["clipT"]
