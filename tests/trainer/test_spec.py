"""Every pattern of the API has an error message, every required key an example, every field a description."""

import re
from collections.abc import Iterator

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from dreambooth_api.job import DreamBoothJob, JobSpec
from dreambooth_api.subject import Subject
from dreambooth_trainer.jobfile.explain import PATTERNS
from dreambooth_trainer.jobfile.schema import EXAMPLES, keys_of, model_of


def fields(model: type[BaseModel], path: str = "") -> Iterator[tuple[str, FieldInfo]]:
    """Every field below a model, by its path in YAML."""
    for key, field in keys_of(model).items():
        child_path = f"{path}.{key}" if path else key
        yield child_path, field
        child = model_of(field.annotation)
        if child is not None:
            yield from fields(child, child_path)


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


def test_every_pattern_has_an_error_message() -> None:
    assert set(patterns(DreamBoothJob.model_json_schema())) <= set(PATTERNS)


def test_every_pattern_compiles_on_the_api_server() -> None:
    # RE2 has no look-around and no back-references.
    assert not [p for p in PATTERNS if re.search(r"\(\?[=!<]|\\[1-9]", p)]


@pytest.mark.parametrize("path", [p for p, f in FIELDS.items() if f.is_required()])
def test_every_required_key_has_an_example_or_a_description(path: str) -> None:
    assert path in EXAMPLES or FIELDS[path].description


@pytest.mark.parametrize("path", [p for p in FIELDS if p.startswith("spec.")])
def test_every_field_is_described(path: str) -> None:
    assert FIELDS[path].description


def test_a_minimal_spec_is_valid() -> None:
    spec = JobSpec(subject=Subject.model_validate({"images": {"uri": "builtin:sprites/x"}, "class": "dog"}))
    assert (spec.preservation, spec.prior_loss_weight) == ("Images", 1)
    assert spec.training.steps is None
