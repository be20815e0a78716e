"""What the modes of prior preservation mean, and the errors of unsuitable fields."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from dreambooth_api.job import JobSpec

SUBJECT = {"images": {"uri": "builtin:sprites/dog-pink-blue"}, "class": "dog"}
NETWORK = {"method": "LoRA", "hyperNetwork": {"id": "builtin:sprites"}}
INVERSION = {"method": "TextualInversion"}


def spec_with(preservation: Any = None, training: Any = None) -> JobSpec:
    given = {"subject": SUBJECT, "priorPreservation": preservation or {}, "training": training or {}}
    return JobSpec.model_validate(given)


@pytest.mark.parametrize(
    ("preservation", "training", "expected"),
    [
        ({}, {}, ("Images", True, True, 1.0)),
        ({"mode": "Images", "lossWeight": 0.5}, {}, ("Images", True, True, 0.5)),
        ({"mode": "Prediction"}, {}, ("Prediction", False, True, 1.0)),
        ({"mode": "Prediction", "lossWeight": 2}, {}, ("Prediction", False, True, 2.0)),
        ({"mode": "Bound"}, {}, ("Bound", False, False, 0.01)),
        ({"mode": "None"}, {}, ("None", False, False, None)),
        ({}, INVERSION, ("None", False, False, None)),
        ({}, {"method": "PivotalTuning"}, ("Images", True, True, 1.0)),
        ({}, NETWORK, ("Prediction", False, True, 1.0)),
        ({"mode": "Images"}, NETWORK, ("Images", True, True, 1.0)),
    ],
)
def test_modes(preservation: Any, training: Any, expected: tuple[Any, ...]) -> None:
    spec = spec_with(preservation, training)
    found = (spec.preservation, spec.uses_class_images, spec.has_class_examples, spec.prior_loss_weight)
    assert found == expected


@pytest.mark.parametrize(
    ("preservation", "training", "message"),
    [
        ({"lossWeight": 1}, INVERSION, "preservation does not apply.*remove lossWeight, or set training.method: LoRA"),
        ({"mode": "Bound"}, INVERSION, "preservation does not apply.*remove mode, or set training.method: LoRA"),
        ({"mode": "None", "lossWeight": 1}, {}, "remove lossWeight, or set mode: Images or Prediction or Bound"),
        ({"mode": "Bound", "sampler": {"steps": 5}}, {}, "remove sampler, or set mode: Images"),
        (
            {},
            {"steps": 1001, "validation": {"prompts": ["a {}"], "everySteps": 10}},
            "10 gives more than 100 validations in 1001 steps.*set 11 or more",
        ),
        ({}, {"reportTo": ["wandb", "mlflow", "wandb"]}, "contains wandb more than once"),
    ],
)
def test_what_does_not_fit_has_a_remedy_that_helps(preservation: Any, training: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){message}"):
        spec_with(preservation, training)
