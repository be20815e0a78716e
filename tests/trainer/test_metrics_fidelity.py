"""Metrics against values computed by hand and by plain loops."""

from __future__ import annotations

import math
from itertools import combinations

import pytest
import torch
from torch import Tensor

from dreambooth_trainer.metrics import fidelity


def _cos(a: Tensor, b: Tensor) -> float:
    x, y = a.double().tolist(), b.double().tolist()
    dot = sum(p * q for p, q in zip(x, y, strict=True))
    return dot / math.sqrt(sum(p * p for p in x)) / math.sqrt(sum(q * q for q in y))


def _random(rows: int, seed: int) -> Tensor:
    return torch.randn(rows, 7, generator=torch.Generator().manual_seed(seed)) * 3 + 1


def test_subject_fidelity_of_known_vectors() -> None:
    # (1,0) against (1,0): 1, against (0,5): 0; (3,4) against them: 0.6 and 0.8. The norms must not matter.
    generated = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    real = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
    assert fidelity.subject_fidelity(generated, real) == pytest.approx((1 + 0 + 0.6 + 0.8) / 4)


def test_subject_fidelity_is_the_mean_over_all_pairs() -> None:
    generated, real = _random(5, 0), _random(3, 1)
    loop = [_cos(g, r) for g in generated for r in real]
    assert fidelity.subject_fidelity(generated, real) == pytest.approx(sum(loop) / 15, abs=1e-9)
    assert fidelity.prior_preservation(generated, real) == pytest.approx(sum(loop) / 15, abs=1e-9)


def test_prompt_fidelity_compares_each_image_with_its_own_prompt() -> None:
    images = torch.tensor([[1.0, 0.0], [0.0, 2.0]])
    texts = torch.tensor([[1.0, 0.0], [3.0, 4.0]])
    assert fidelity.prompt_fidelity(images, texts) == pytest.approx((1 + 0.8) / 2)
    assert fidelity.prompt_fidelity(images, texts.flip(0)) == pytest.approx((0.6 + 0) / 2)


def test_real_image_fidelity_excludes_pairs_of_an_image_with_itself() -> None:
    real = _random(4, 2)
    loop = [_cos(a, b) for a, b in combinations(real, 2)]
    assert fidelity.real_image_fidelity(real) == pytest.approx(sum(loop) / 6, abs=1e-9)
    assert fidelity.real_image_fidelity(real[:1]) is None


def test_diversity_is_the_mean_over_prompts_of_the_means_over_pairs() -> None:
    same = torch.tensor([[1.0, 0.0], [2.0, 0.0], [3.0, 0.0]])  # three pairs at 0
    apart = torch.tensor([[1.0, 0.0], [0.0, 1.0]])  # one pair at 1
    assert fidelity.diversity([same, apart]) == pytest.approx(0.5)
    assert fidelity.diversity([apart[:1], apart]) == pytest.approx(1.0)  # one image has no pairs
    assert fidelity.diversity([apart[:1]]) is None
    assert fidelity.diversity([]) is None


def test_diversity_equals_a_plain_loop() -> None:
    groups = [_random(4, seed) for seed in range(3)]
    loop = [sum(1 - _cos(a, b) for a, b in combinations(g, 2)) / 6 for g in groups]
    assert fidelity.diversity(groups) == pytest.approx(sum(loop) / 3, abs=1e-9)


def test_diversity_accepts_a_distance_of_images() -> None:
    images = torch.stack([torch.full((3, 2, 2), value) for value in (0.0, 0.5, 1.0)])
    distance = fidelity.diversity([images], lambda a, b: (a - b).abs().mean(dim=(1, 2, 3)))
    assert distance == pytest.approx((0.5 + 1.0 + 0.5) / 3)


def test_missing_images_are_an_error() -> None:
    with pytest.raises(ValueError, match="at least one image"):
        fidelity.subject_fidelity(torch.empty(0, 4), _random(2, 0)[:, :4])
    with pytest.raises(ValueError, match="one row of text features per image"):
        fidelity.prompt_fidelity(_random(3, 0), _random(2, 0))
