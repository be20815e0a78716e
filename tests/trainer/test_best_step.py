"""Which step of a training is published with `output.select: Best`: a function of the scores alone."""

from __future__ import annotations

import math
import random

import pytest

from dreambooth_api.output import Output
from dreambooth_trainer.metrics.best_step import KEPT_CLIP_T, Standing, explain, standing

BASE = {"dino": 0.2, "clipT": 0.30}
LIMIT = 0.85 * 0.30


def scores_of(*rows: tuple[float, float]) -> dict[int, dict[str, float]]:
    """Scores of the base model, and DINO and CLIP-T of steps 10, 20, ..."""
    return {0: BASE} | {10 * (n + 1): {"dino": dino, "clipT": clip_t} for n, (dino, clip_t) in enumerate(rows)}


# DINO and CLIP-T of each validation, the best step.
RULE: dict[str, tuple[list[tuple[float, float]], int]] = {
    "the highest DINO": ([(0.5, 0.3), (0.7, 0.28), (0.6, 0.29)], 20),
    "the highest DINO of those that follow prompts": ([(0.5, 0.3), (0.6, 0.27), (0.9, 0.2)], 20),
    "the limit itself follows prompts": ([(0.5, 0.3), (0.6, LIMIT)], 20),
    "just below the limit does not": ([(0.5, 0.3), (0.6, LIMIT - 1e-9)], 10),
    "the earlier of equal steps": ([(0.5, 0.27), (0.6, 0.26), (0.6, 0.3)], 20),
    "the highest CLIP-T if none follows prompts": ([(0.5, 0.1), (0.6, 0.2), (0.9, 0.15)], 20),
    "the earlier of equal CLIP-T": ([(0.5, 0.2), (0.9, 0.2)], 10),
    "one that follows prompts although its DINO is low": ([(0.9, 0.25), (0.1, 0.26)], 20),
    "never the base model": ([(0.1, 0.1)], 10),
    "no DINO that is not a number": ([(math.nan, 0.3), (0.5, 0.3), (math.nan, 0.3)], 20),
    "no CLIP-T that is not a number": ([(0.9, math.nan), (0.5, 0.1)], 20),
}


@pytest.mark.parametrize("case", RULE)
def test_the_rule(case: str) -> None:
    rows, best = RULE[case]
    scores = scores_of(*rows)
    validated = [step for step in scores if step]
    assert standing(scores, validated, None) == Standing(best, tuple(validated), decided=True)


@pytest.mark.parametrize("scale", [0.1, 1, 3])
def test_the_rule_does_not_depend_on_the_scale_of_an_encoder(scale: float) -> None:
    for rows, best in RULE.values():
        scaled = {
            step: {name: scale * value for name, value in values.items()} for step, values in scores_of(*rows).items()
        }
        assert standing(scaled, [step for step in scaled if step], None).best == best


# DINO of each validation, patience, the validations that count, the best one.
PATIENCE: dict[str, tuple[list[float], int, list[int], int]] = {
    "one worse validation": ([0.5, 0.4, 0.9], 1, [10, 20], 10),
    "an equal validation is not better": ([0.5, 0.5, 0.9], 1, [10, 20], 10),
    "a better validation in time": ([0.5, 0.4, 0.6, 0.5, 0.4, 0.9], 2, [10, 20, 30, 40, 50], 30),
    "better and better": ([0.5, 0.6, 0.7], 1, [10, 20, 30], 30),
    "the last validation ends the patience": ([0.5, 0.4], 1, [10, 20], 10),
    "more patience than validations": ([0.5, 0.4], 100, [10, 20], 10),
}


@pytest.mark.parametrize("case", PATIENCE)
def test_validations_after_the_end_of_patience_do_not_count(case: str) -> None:
    rows, patience, counted, best = PATIENCE[case]
    scores = scores_of(*((dino, 0.3) for dino in rows))
    validated = [step for step in scores if step]
    assert standing(scores, validated, patience) == Standing(best, tuple(counted), decided=True)


def test_the_order_in_which_scores_arrive_does_not_matter() -> None:
    """Whatever is scored so far: once a choice is called final, it is that of all scores."""
    draw = random.Random(0)
    undecided = 0
    for _ in range(500):
        rows = [(draw.choice([0.4, 0.5, 0.6]), draw.choice([0.2, 0.26, 0.3])) for _ in range(draw.randint(1, 6))]
        scores = scores_of(*rows)
        validated, patience = [step for step in scores if step], draw.choice([None, 1, 2, 3])
        final = standing(scores, validated, patience)
        some = {step: values for step, values in scores.items() if draw.random() < 0.7}
        now = standing(some, validated, patience)
        undecided += not now.decided
        assert not now.decided or now == final
        # A step that is neither the best one so far nor still to be judged never becomes the best one.
        assert final.best in {now.best, *(set(validated) - set(now.validated))}
    assert 100 < undecided < 500


def test_nothing_is_best_before_the_base_model_and_the_first_step_are_scored() -> None:
    nothing = Standing(None, (), decided=False)
    assert standing({}, [10], None) == nothing
    assert standing({0: BASE}, [10], None) == nothing
    assert standing({10: BASE}, [10], None) == nothing
    assert standing({0: BASE, 20: BASE}, [10, 20], 1) == nothing, "a later score does not count before an earlier one"


def test_the_reason_is_one_sentence() -> None:
    scores = scores_of((0.5, 0.3), (0.7, 0.28), (0.9, 0.1))
    assert explain(scores, standing(scores, [10, 20, 30], None), 30) == (
        "Step 20 of 30 was selected: its DINO (0.700) is the highest of the 2 of 3 validations that keep at least 85 % "
        "of the base model's CLIP-T"
    )
    assert explain(scores, standing(scores, [10, 20, 30, 40], 1), 40) == (
        "Step 20 of 40 was selected: its DINO (0.700) is the highest of the 2 of 3 validations that keep at least 85 % "
        "of the base model's CLIP-T, and the validations after it until step 30 were not better"
    )
    scores = scores_of((0.5, 0.1), (0.4, 0.2))
    assert explain(scores, standing(scores, [10, 20], None), 20) == (
        "Step 20 of 20 was selected: no validation keeps 85 % of the base model's CLIP-T (0.300), and its CLIP-T "
        "(0.200) is the highest of 2"
    )


def test_the_api_states_the_limit() -> None:
    assert f"at least {100 * KEPT_CLIP_T:g} % of the base model's CLIP-T" in str(
        Output.model_fields["select"].description
    )
