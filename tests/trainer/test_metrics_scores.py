"""Measuring a model from images, JSON, thresholds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dreambooth_api.job import Thresholds
from dreambooth_trainer.metrics.encoders import Encoders
from dreambooth_trainer.metrics.scores import PAPER, PromptImages, Scores, failed_thresholds, measure

RED, GREEN, BLUE = (Image.new("RGB", (4, 4), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


@dataclass(frozen=True)
class ColourEncoder:
    """The mean colour as feature; a text is the colour that it names."""

    name: str = "colour"

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        rows = [torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32) for image in images]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([torch.tensor([float(c in text) for c in ("red", "green", "blue")]) for text in texts])


ENCODERS = Encoders(dino=ColourEncoder(), clip=ColourEncoder())


def test_measure_by_hand() -> None:
    scores = measure(
        ENCODERS,
        real=[RED, GREEN],
        generated=[PromptImages("red", [RED, BLUE]), PromptImages("green", [GREEN, GREEN])],
        class_images=[RED, RED, BLUE, BLUE],
    )
    # Images against (red, green): red 1/2, blue 0, green 1/2, green 1/2.
    assert scores.dino == scores.clip_i == pytest.approx(1.5 / 4)
    assert scores.clip_t == pytest.approx((1 + 0 + 1 + 1) / 4)
    assert scores.pres == pytest.approx(0.25)
    assert scores.div == pytest.approx(0.5)
    assert scores.div_class == pytest.approx(4 / 6)
    assert [(row.prompt, row.images, row.clip_t) for row in scores.prompts] == [("red", 2, 0.5), ("green", 2, 1.0)]


def test_clip_t_is_a_mean_over_images_not_over_prompts() -> None:
    scores = measure(ENCODERS, [RED], [PromptImages("red", [RED] * 3), PromptImages("green", [BLUE])])
    assert scores.clip_t == pytest.approx(3 / 4)
    assert scores.pres is None
    assert scores.div_class is None
    assert scores.div == 0


def test_json_round_trip_and_refusal_of_nan() -> None:
    scores = measure(ENCODERS, [RED], [PromptImages("red", [RED, BLUE])], [GREEN])
    assert Scores.from_json(scores.to_json()) == scores
    with pytest.raises(ValidationError):
        Scores(dino=float("nan"), clip_i=0, clip_t=0)
    with pytest.raises(ValidationError):
        Scores.from_json('{"dino": 1, "clip_i": 1, "clip_t": 1, "surprise": 1}')


def test_thresholds_name_every_score_that_is_too_low() -> None:
    scores = Scores(dino=0.5, clip_i=0.7, clip_t=0.25)
    assert failed_thresholds(scores, Thresholds()) == []
    assert failed_thresholds(scores, Thresholds(dino=0.5, clip_i=0.7, clip_t=0.25)) == []
    issues = failed_thresholds(scores, Thresholds(dino=0.6, clip_i=0.7, clip_t=0.3))
    assert [str(issue) for issue in issues] == [
        "spec.evaluation.thresholds.dino: 0.6: the trained model scores 0.500; train longer (spec.training.steps), "
        "give clearer images, or write a lower threshold",
        "spec.evaluation.thresholds.clipT: 0.3: the trained model scores 0.250; train longer (spec.training.steps), "
        "give clearer images, or write a lower threshold",
    ]


def test_paper_rows_are_table_1() -> None:
    assert [(row.dino, row.clip_i, row.clip_t) for row in PAPER] == [
        (0.774, 0.885, None),
        (0.696, 0.812, 0.306),
        (0.668, 0.803, 0.305),
        (0.569, 0.780, 0.255),
    ]
