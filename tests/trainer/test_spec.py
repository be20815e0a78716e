"""The contract itself: every rule has words, every required key an example, every field a description."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.subject import Subject
from dreambooth_trainer.jobfile.explain import PATTERNS
from dreambooth_trainer.jobfile.schema import EXAMPLES, keys_of, model_in


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field below a model, by its path in YAML."""
    for key, field in keys_of(model).items():
        here = f"{path}.{key}" if path else key
        yield here, field
        below = model_in(field.annotation)
        if below is not None:
            yield from fields(below, here)


FIELDS = dict(fields(DreamBoothJob))


def patterns(schema: object) -> Iterator[str]:
    """Every pattern in a JSON schema."""
    if isinstance(schema, dict):
        if isinstance(schema.get("pattern"), str):
            yield schema["pattern"]
        for item in schema.values():
            yield from patterns(item)
    elif isinstance(schema, list):
        for item in schema:
            yield from patterns(item)


def test_every_pattern_is_said_in_words() -> None:
    assert set(patterns(DreamBoothJob.model_json_schema())) <= set(PATTERNS)


def test_every_pattern_is_one_that_the_api_server_compiles() -> None:
    # RE2 knows no look-around and no back-references.
    assert not [p for p in PATTERNS if re.search(r"\(\?[=!<]|\\[1-9]", p)]


@pytest.mark.parametrize("path", [p for p, f in FIELDS.items() if f.is_required()])
def test_every_required_key_has_an_example_or_a_description(path: str) -> None:
    assert path in EXAMPLES or FIELDS[path].description


@pytest.mark.parametrize("path", [p for p in FIELDS if p.startswith("spec.")])
def test_every_field_is_described(path: str) -> None:
    assert FIELDS[path].description


def test_a_minimal_spec_is_enough() -> None:
    spec = JobSpec(subject=Subject.model_validate({"images": {"uri": "builtin:sprites/x"}, "class": "dog"}))
    assert spec.prior_preservation.enabled
    assert spec.training.steps is None
