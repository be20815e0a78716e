"""Scores of a model: computation from images, JSON, thresholds, and the table of metrics."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import pytest
import torch
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from dreambooth_api import status
from dreambooth_api.job import Thresholds
from dreambooth_api.metrics import METRICS
from dreambooth_trainer.metrics.encoders import Encoders
from dreambooth_trainer.metrics.measure import MEASURES, PromptImages, measure
from dreambooth_trainer.metrics.scores import PAPER, Scores, failed_thresholds

RED, GREEN, BLUE = (Image.new("RGB", (4, 4), color) for color in ((255, 0, 0), (0, 255, 0), (0, 0, 255)))


@dataclass(frozen=True)
class ColorEncoder:
    """Encodes an image as its mean color, and a text as the color that it names."""

    name: str = "color"

    def encode(self, images: Sequence[Image.Image]) -> Tensor:
        rows = [torch.tensor(image.resize((1, 1)).getpixel((0, 0)), dtype=torch.float32) for image in images]
        return torch.nn.functional.normalize(torch.stack(rows), dim=1)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        return torch.stack([torch.tensor([float(c in text) for c in ("red", "green", "blue")]) for text in texts])


ENCODERS = Encoders(dino=ColorEncoder(), clip=ColorEncoder())


def test_scores_of_known_images() -> None:
    scores = measure(
        ENCODERS,
        real=[RED, GREEN],
        generated=[PromptImages("red", [RED, BLUE]), PromptImages("green", [GREEN, GREEN])],
        class_images=[RED, RED, BLUE, BLUE],
    )
    # Images against (red, green): red 1/2, blue 0, green 1/2, green 1/2.
    assert scores.values == {
        "dino": pytest.approx(1.5 / 4),
        "clipI": pytest.approx(1.5 / 4),
        "clipT": pytest.approx((1 + 0 + 1 + 1) / 4),
        "pres": pytest.approx(0.25),
        "subjectDiversity": pytest.approx(0.5),
        "classDiversity": pytest.approx(4 / 6),
    }
    rows = [(row.prompt, row.images, row.values["clipT"], row.values["subjectDiversity"]) for row in scores.prompts]
    assert rows == [("red", 2, 0.5, 1.0), ("green", 2, 1.0, 0.0)]
    assert "pres" not in scores.prompts[0].values


def test_scores_name_encoders_of_local_folders_without_their_paths() -> None:
    encoders = Encoders(ColorEncoder("/home/grandma/dino-vits16"), ColorEncoder("openai/clip-vit-base-patch32"))
    scores = measure(encoders, [RED], [PromptImages("red", [RED])])
    assert (scores.dino_encoder, scores.clip_encoder) == ("dino-vits16", "openai/clip-vit-base-patch32")


def test_clip_t_is_the_mean_over_images() -> None:
    scores = measure(ENCODERS, [RED], [PromptImages("red", [RED] * 3), PromptImages("green", [BLUE])])
    assert scores.values["clipT"] == pytest.approx(3 / 4)
    assert scores.values.keys() == {"dino", "clipI", "clipT", "subjectDiversity"}
    assert scores.values["subjectDiversity"] == 0


class RedDistance:
    """The distance of two images is the difference of their red, from 0 to 1."""

    name = "red"

    def mean_distance(self, images: Sequence[Image.Image]) -> float | None:
        reds = [image.convert("RGB").getpixel((0, 0))[0] / 255 for image in images]
        pairs = [abs(a - b) for a, b in combinations(reds, 2)]
        return sum(pairs) / len(pairs) if pairs else None


def test_div_is_the_mean_over_prompts_of_the_distances_of_subject_images() -> None:
    encoders = replace(ENCODERS, lpips=RedDistance())
    prompts = [PromptImages("red", [RED, BLUE]), PromptImages("green", [GREEN, GREEN]), PromptImages("blue", [BLUE])]
    scores = measure(encoders, [RED], prompts, class_images=[RED, BLUE])
    assert scores.values["div"] == pytest.approx((1 + 0) / 2)
    assert [row.values.get("div") for row in scores.prompts] == [1, 0, None]
    assert scores.lpips_network == "red"


def test_without_lpips_no_other_distance_is_called_div() -> None:
    encoders = replace(ENCODERS, without_lpips="DIV is not computed: torchvision is not installed")
    scores = measure(encoders, [RED], [PromptImages("red", [RED, BLUE])], class_images=[RED, BLUE])
    assert "div" not in scores.values
    assert (scores.lpips_network, scores.without_lpips) == ("", "DIV is not computed: torchvision is not installed")


def test_real_images_bound_subject_fidelity() -> None:
    prompts = [PromptImages("red", [RED, BLUE])]
    assert measure(ENCODERS, [RED, RED, GREEN], prompts).real_images == {
        "dino": pytest.approx(1 / 3),
        "clipI": pytest.approx(1 / 3),
    }
    assert measure(ENCODERS, [RED], prompts).real_images == {}


def test_scores_round_trip_through_json_and_reject_invalid_values() -> None:
    scores = measure(ENCODERS, [RED], [PromptImages("red", [RED, BLUE])], [GREEN])
    assert Scores.model_validate_json(scores.model_dump_json(by_alias=True)) == scores
    with pytest.raises(ValidationError):
        Scores(values={"dino": float("nan")})
    with pytest.raises(ValidationError):
        Scores.model_validate_json('{"values": {"dino": 1}, "unknown": 1}')


def test_every_score_below_its_threshold_is_reported() -> None:
    scores = Scores(values={"dino": 0.5, "clipI": 0.7, "clipT": 0.25})
    assert failed_thresholds(scores, Thresholds()) == []
    assert failed_thresholds(scores, Thresholds(dino=0.5, clip_i=0.7, clip_t=0.25)) == []
    issues = failed_thresholds(scores, Thresholds(dino=0.6, clip_i=0.7, clip_t=0.3))
    assert [str(issue) for issue in issues] == [
        "spec.evaluation.thresholds.dino: 0.6: the trained model scores 0.500; train longer (spec.training.steps), "
        "use clearer images, or set a lower threshold",
        "spec.evaluation.thresholds.clipT: 0.3: the trained model scores 0.250; train longer (spec.training.steps), "
        "use clearer images, or set a lower threshold",
    ]
    (issue,) = failed_thresholds(Scores(values={"clipT": 0.3}), Thresholds(dino=0.1))
    assert "thresholds.dino: 0.1: was not computed" in str(issue)


def test_paper_rows_are_table_1() -> None:
    assert [(row.dino, row.clip_i, row.clip_t) for row in PAPER] == [
        (0.774, 0.885, None),
        (0.696, 0.812, 0.306),
        (0.668, 0.803, 0.305),
        (0.569, 0.780, 0.255),
    ]


def test_every_metric_has_a_function_a_status_field_and_if_possible_a_threshold() -> None:
    assert list(MEASURES) == [metric.name for metric in METRICS]
    assert [field.alias for field in status.Scores.model_fields.values()] == [metric.name for metric in METRICS]
    thresholds = [field.alias for field in Thresholds.model_fields.values()]
    assert thresholds == [metric.name for metric in METRICS if metric.threshold]
    # Python names and JSON names of pydantic models are derived from each other.
    assert list(status.Scores.model_fields) == [metric.field for metric in METRICS]


NEW_METRIC = """
from dreambooth_api import metrics

new = metrics.Metric("sharpNess", "SHARP", "sharpness", "High: sharp.", True, threshold=True, printer_column=True)
metrics.METRICS = (*metrics.METRICS, new)

import torch
from dreambooth_api.job import Thresholds
from dreambooth_api.status import Scores as ReportedScores, TrainerPhase
from dreambooth_trainer.metrics import measure
from dreambooth_trainer.metrics.scores import Scores, failed_thresholds
from dreambooth_trainer.progress import http
from dreambooth_trainer.report.scores import score_rows

measure.MEASURES["sharpNess"] = lambda features: 0.5
rows = torch.eye(2)
features = measure.Features(rows, rows, [rows], [rows], [rows[0]], rows)
scores = Scores(values=measure._values(features))
assert scores.values["sharpNess"] == 0.5
row = score_rows(scores, scores)[-1]
assert (row.name, row.before, row.after, row.meaning) == ("SHARP", 0.5, 0.5, "High: sharp.")
(issue,) = failed_thresholds(scores, Thresholds(sharpNess=0.6))
assert issue.path == "spec.evaluation.thresholds.sharpNess"
assert ReportedScores(sharpNess="0.500").model_dump(by_alias=True)["sharpNess"] == "0.500"

class Mock:
    def __getattr__(self, name):
        return lambda *args, **kwargs: None

reporter = http.OperatorReporter(Mock(), Mock())
reporter.finished(TrainerPhase.EVALUATE, {"key": "k", **scores.values})
assert reporter.message.scores["sharpNess"] == 0.5

from dreambooth_operator.crd.definitions import job_crd

crd = str(job_crd())
assert "has(self.thresholds.sharpNess)" in crd
assert "'.status.scores.sharpNess'" in crd
assert "'Minimum SHARP score (sharpness).'" in crd
assert "'SHARP: sharpness. Higher is better.'" in crd
"""


def test_a_new_metric_is_one_row_and_one_function() -> None:
    # A process of its own, because pydantic models are made from the table on import.
    subprocess.run([sys.executable, "-c", NEW_METRIC], check=True, timeout=300)
