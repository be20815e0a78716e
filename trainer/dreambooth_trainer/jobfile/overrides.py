"""Overrides such as `--set training.steps=200`: a dotted path below `spec`, and a YAML value."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass

from pydantic import BaseModel, JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec
from dreambooth_trainer.jobfile.explain import unknown_key
from dreambooth_trainer.jobfile.schema import is_mapping, item_of, keys_of, model_of
from dreambooth_trainer.jobfile.yamltext import Path, read_value


@dataclass(frozen=True)
class Override:
    """A value for a field.

    Attributes:
        path: from the root of the job, for example ("spec", "training", "steps").
        value: None restores the default.
        option: what the user wrote, for messages: "--steps 200".
    """

    path: Path
    value: JsonValue
    option: str


Sets = Sequence[str | Override]
"""Overrides, as text `training.steps=200` or parsed. Later ones have precedence."""


def apply_sets(value: JsonValue, sets: Sets) -> tuple[JsonValue, dict[Path, str], list[ValidationIssue]]:
    """Apply overrides to a copy of a document. Later overrides have precedence.

    Returns:
        The copy, the option that set each changed path, and an issue for each override without `=`, with an unknown
        path or with invalid YAML. Such an override is skipped, so that all issues of the job are reported at once.
    """
    if not sets or not isinstance(value, dict):
        return value, {}, []
    changed: dict[str, JsonValue] = deepcopy(value)
    origins: dict[Path, str] = {}
    issues: list[ValidationIssue] = []
    for given in sets:
        try:
            override = given if isinstance(given, Override) else _parse(given)
            _assign(changed, override)
            origins[override.path] = override.option
        except UserError as error:
            issues += error.issues
    return changed, origins, issues


def _parse(text: str) -> Override:
    dotted, equals, value = text.partition("=")
    if not equals or not dotted.strip():
        remedy = "write, for example, --set training.steps=200"
        raise UserError(ValidationIssue(f"--set {text}", None, "is not KEY=VALUE", remedy))
    path = _path(dotted.strip().removeprefix("spec.").split("."), text)
    try:
        return Override(("spec", *path), read_value(value), f"--set {text}")
    except UserError as error:
        rule = f"the value {error.issues[0].rule}"
        remedy = "quote it, for example --set 'subject.class=\"dog\"'"
        raise UserError(ValidationIssue(f"--set {text}", None, rule, remedy)) from error


def _path(parts: list[str], text: str) -> Path:
    """Check the parts against the schema. Below a mapping such as captions, the rest is one key: 00.jpg has a dot."""
    model: type[BaseModel] | None = JobSpec
    path: list[str] = []
    for index, part in enumerate(parts):
        if model is None:
            rule = f"{'.'.join(path)} has no keys below it"
            raise UserError(ValidationIssue(f"--set {text}", None, rule, f"use --set {'.'.join(path)}=VALUE"))
        field = keys_of(model).get(part)
        if field is None:
            rule, remedy = unknown_key(part, model)
            raise UserError(ValidationIssue(f"--set {text}", None, f"{part or 'an empty key'} {rule}", remedy))
        path.append(part)
        if is_mapping(field.annotation):
            rest = parts[index + 1 :]
            return (*path, *([".".join(rest)] if rest and item_of(field.annotation) is not JsonValue else rest))
        model = model_of(field.annotation)
    return tuple(path)


def _assign(document: dict[str, JsonValue], override: Override) -> None:
    parent: dict[str, JsonValue] = document
    for part in override.path[:-1]:
        child = parent.setdefault(str(part), {})
        if not isinstance(child, dict):
            rule = f"{part} is not a mapping in the job file"
            raise UserError(ValidationIssue(override.option, None, rule, f"correct {part} in the file first"))
        parent = child
    key = str(override.path[-1])
    if override.value is None:
        # `--set training.steps=` restores the default.
        parent.pop(key, None)
    else:
        parent[key] = override.value
