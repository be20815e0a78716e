"""`--set training.steps=200`: a dotted path below `spec`, and a YAML value."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy

from pydantic import BaseModel, JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec
from dreambooth_trainer.jobfile.explain import unknown_key
from dreambooth_trainer.jobfile.schema import is_mapping, item_of, keys_of, model_in
from dreambooth_trainer.jobfile.yamltext import Path, read_value


def apply_sets(value: JsonValue, sets: Sequence[str]) -> tuple[JsonValue, dict[Path, str], list[ValidationIssue]]:
    """A copy of the document with the overrides in it, and which override set which path; later ones win.

    Third comes an issue for every override that has no `=`, no such path, or no YAML value: it is left out, so that
    the rest of the job can be checked and all issues told at once.
    """
    if not sets or not isinstance(value, dict):
        return value, {}, []
    changed: dict[str, JsonValue] = deepcopy(value)
    origins: dict[Path, str] = {}
    issues: list[ValidationIssue] = []
    for text in sets:
        try:
            path, new = _parse(text)
            _put(changed, path, new, text)
            origins[path] = text
        except UserError as error:
            issues += error.issues
    return changed, origins, issues


def _parse(text: str) -> tuple[Path, JsonValue]:
    dotted, equals, written = text.partition("=")
    if not equals or not dotted.strip():
        raise UserError(
            ValidationIssue(f"--set {text}", None, "has no key=value", "write for example --set training.steps=200")
        )
    path = _path(dotted.strip().removeprefix("spec.").split("."), text)
    try:
        return ("spec", *path), read_value(written)
    except UserError as error:
        rule = f"the value {error.issues[0].rule}"
        raise UserError(
            ValidationIssue(f"--set {text}", None, rule, "quote it, as in --set 'subject.class=\"dog\"'")
        ) from error


def _path(parts: list[str], text: str) -> Path:
    """The parts as keys. Below a mapping whose keys are the user's, all that is left is one key (00.jpg has a dot)."""
    model: type[BaseModel] | None = JobSpec
    path: list[str] = []
    for index, part in enumerate(parts):
        if model is None:
            rule = f"{'.'.join(path)} has no keys below it"
            raise UserError(ValidationIssue(f"--set {text}", None, rule, f"write --set {'.'.join(path)}=VALUE"))
        field = keys_of(model).get(part)
        if field is None:
            rule, remedy = unknown_key(part, model)
            raise UserError(ValidationIssue(f"--set {text}", None, f"{part or 'an empty name'} {rule}", remedy))
        path.append(part)
        if is_mapping(field.annotation):
            rest = parts[index + 1 :]
            return (*path, *([".".join(rest)] if rest and item_of(field.annotation) is not JsonValue else rest))
        model = model_in(field.annotation)
    return tuple(path)


def _put(document: dict[str, JsonValue], path: Path, new: JsonValue, text: str) -> None:
    here: dict[str, JsonValue] = document
    for part in path[:-1]:
        below = here.setdefault(str(part), {})
        if not isinstance(below, dict):
            rule = f"{part} is no mapping in the job file"
            raise UserError(ValidationIssue(f"--set {text}", None, rule, f"correct {part} in the file first"))
        here = below
    last = str(path[-1])
    if new is None:
        # `--set training.steps=` means: back to the default.
        here.pop(last, None)
    else:
        here[last] = new
