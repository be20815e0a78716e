"""Jobs share the instances of their defaults, which take most of the time of validation otherwise."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from dreambooth_api.fields import Strict
from dreambooth_api.job import JobSpec


def spec(**fields: object) -> JobSpec:
    return JobSpec.model_validate({"subject": {"images": {"uri": "photos"}, "class": "dog"}, **fields})


def test_defaults_are_shared_and_immutable() -> None:
    first, second = spec(), spec(training={"steps": 5})
    shared = [name for name, value in first if isinstance(value, Strict) and value is getattr(second, name)]
    assert shared == ["prior_preservation", "evaluation", "output", "cluster", "run_policy"]
    assert second.training.text_encoder is first.training.text_encoder
    with pytest.raises(ValidationError, match="frozen"):
        first.run_policy.suspend = True  # type: ignore[misc]
    assert first.model_dump(exclude_unset=True) == first.model_dump(include={"subject"}, exclude_unset=True)


def test_set_fields_are_not_shared() -> None:
    assert spec(runPolicy={"suspend": True}).run_policy.suspend
    assert not spec().run_policy.suspend
