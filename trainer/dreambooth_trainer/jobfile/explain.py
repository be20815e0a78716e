"""Pydantic's errors in the user's words: path, value got, rule, what to write instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dreambooth_api import fields, uris
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.jobfile.schema import EXAMPLES, keys_of, model_in, nearest, spot, written
from dreambooth_trainer.jobfile.yamltext import Path

M = TypeVar("M", bound=BaseModel)

PATTERNS: dict[str, tuple[str, str]] = {
    fields.DNS_LABEL: (
        "is not a Kubernetes name: lower-case letters, digits and -, at most 63",
        "write for example my-dog",
    ),
    fields.DNS_SUBDOMAIN: ("is not a Kubernetes name: lower-case letters, digits, - and .", "write for example my-dog"),
    fields.TEMPLATE: (
        "must be one line with {} exactly once, where the subject goes, and no other braces",
        "write for example 'a {} on the beach', in quotes",
    ),
    fields.PHRASE: ("must be one line of words, without braces", "write for example a sks dog, or dog for a class"),
    fields.QUANTITY: ("is not a Kubernetes quantity", "write for example '4', 500m or 16Gi"),
    fields.TOKEN: ("must be one word of at most 32 characters, without braces", "write for example sks, or auto"),
    fields.RELATIVE_PATH: (
        "must be a folder inside the volume, without a leading /, and without . or .. or hidden folders",
        "write for example photos/dog",
    ),
    uris.SOURCE_URI: (
        "must be a local folder, s3://bucket/folder, gs://bucket/folder or builtin:sprites/<name>",
        "write for example photos/",
    ),
    uris.OUTPUT_URI: (
        "must be a local folder, s3://bucket/folder or gs://bucket/folder",
        "write for example out/my-dog",
    ),
}
"""Pattern -> rule and remedy. A test holds every pattern of the contract against it."""

_TYPES = {
    "int_type": ("must be a whole number", "a number without quotes"),
    "float_type": ("must be a number", "a number without quotes"),
    "bool_type": ("must be true or false", "true or false, without quotes"),
    "string_type": ("must be text", "it in quotes"),
    "list_type": ("must be a list", "one item a line, each after a dash: - item"),
    "dict_type": ("must be a mapping", "key: value, one a line"),
}
_BOUNDS = {
    "greater_than": ("must be more than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}


def validate(
    root: type[M], value: JsonValue, source: Callable[[Path], str] = lambda _path: "", name: str = "document"
) -> M:
    """Build `root` from what a YAML file says, or tell everything that is wrong with it.

    Args:
        source: where the value at a path came from ("line 7"); an empty string when unknown.
        name: what to call the whole, in a fault that is about no key.

    Raises:
        UserError: one issue for each thing that is wrong.
    """
    try:
        # By alias only: the API server would refuse the snake_case names that Python callers may use.
        return root.model_validate(value, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise UserError([_fault(root, detail, source, name) for detail in details])


def unknown_key(key: str, model: type[BaseModel]) -> tuple[str, str]:
    """Rule and remedy for a key that `model` does not have."""
    known = list(keys_of(model))
    meant = nearest(key, known)
    remedy = f"did you mean {meant}?" if meant else f"allowed here: {', '.join(known)}"
    return "is not a known key", remedy


def _fault(root: type[BaseModel], detail: ErrorDetails, source: Callable[[Path], str], name: str) -> ValidationIssue:
    path: Path = detail["loc"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    value: object = detail["input"]
    match detail["type"]:
        case "rule":
            path += tuple(str(context["at"]).split(".", 1)) if context["at"] else ()
            value, rule, remedy = None, str(context["rule"]), str(context["remedy"])
        case "missing":
            value, rule, remedy = None, "is required", _example(root, path)
            return ValidationIssue(written(path), value, rule, remedy, source(path[:-1]))
        case "extra_forbidden":
            model = model_in(spot(root, path[:-1]).annotation)
            value = None
            rule, remedy = unknown_key(str(path[-1]), model or root)
        case kind:
            rule, remedy = _rule(root, kind, path, value, context, detail["msg"])
    return ValidationIssue(written(path) if path else name, _shown(value), rule, remedy, source(path))


def _rule(
    root: type[BaseModel], kind: str, path: Path, value: object, context: Mapping[str, Any], message: str
) -> tuple[str, str]:
    key = str(path[-1]) if path else ""
    if kind in _TYPES:
        rule, write = _TYPES[kind]
        if kind == "int_type" and isinstance(value, float):
            return rule, f"write {int(value)} or {int(value) + 1}"
        if kind == "string_type" and not isinstance(value, int | float):
            write = "a text"
        return f"{rule}, not {_kind(value)}", f"write {write}"
    if kind in _BOUNDS:
        words, bound = _BOUNDS[kind]
        return f"{words} {_number(context[bound])}", f"write {_inside(root, path, kind, context[bound])}"
    match kind:
        case "literal_error":
            return _choice(root, path, value, key)
        case "string_pattern_mismatch":
            return PATTERNS.get(str(context["pattern"]), (f"must match {context['pattern']}", "change it"))
        case "string_too_short" | "too_short":
            return "must not be empty", "leave the key out for the default, or write a value"
        case "string_too_long":
            return f"has {len(str(value))} characters; at most {context['max_length']} are allowed", "shorten it"
        case "too_long":
            return f"has {context['actual_length']} items; at most {context['max_length']} are allowed", "drop some"
        case "multiple_of":
            step = int(context["multiple_of"])
            below = int(str(value)) // step * step
            return f"must be a multiple of {step}", f"write {below or step} or {below + step}"
        case "model_type" | "model_attributes_type":
            model = model_in(spot(root, path).annotation) or root
            keys = ", ".join(keys_of(model))
            return f"must be a mapping, not {_kind(value)}", f"write keys below it: {keys}"
        case _:
            return message[:1].lower() + message[1:], "change it"


def _choice(root: type[BaseModel], path: Path, value: object, key: str) -> tuple[str, str]:
    choices = [str(choice) for choice in _literals(root, path)]
    meant = nearest(str(value), choices)
    prefix = f"{key}: " if key and not isinstance(path[-1], int) else ""
    rule = f"must be {choices[0]}" if len(choices) == 1 else f"must be one of {', '.join(choices)}"
    return rule, f"write {prefix}{meant or choices[0]}"


def _literals(root: type[BaseModel], path: Path) -> list[object]:
    def collect(annotation: Any) -> list[object]:
        arguments = get_args(annotation)
        if not arguments:
            return [] if isinstance(annotation, type) else [annotation]
        return [one for argument in arguments for one in collect(argument)]

    return [one for one in collect(spot(root, path).annotation) if isinstance(one, str)]


def _inside(root: type[BaseModel], path: Path, kind: str, bound: float) -> str:
    """A value that satisfies the broken bound: the paper's or default number where one is known."""
    field = spot(root, path).field
    default = field.get_default() if field else None
    if isinstance(default, int | float) and not isinstance(default, bool):
        return f"for example {_number(default)}"
    if path and path[-1] == "learningRate":
        return "for example 5e-6"
    return f"{_number(bound)} or {'more' if kind.startswith('greater') else 'less'}"


def _example(root: type[BaseModel], path: Path) -> str:
    known = EXAMPLES.get(".".join(map(str, path)))
    if known:
        return f"write for example {known}"
    field = spot(root, path).field
    return f"write {path[-1]}: {field.description if field and field.description else '...'}"


def _shown(value: object) -> object:
    """What a person recognises: a scalar. Lists and mappings would bury the sentence."""
    return value if isinstance(value, str | int | float) else None


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _kind(value: object) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true or false"
        case int() | float():
            return "a number"
        case str():
            return "text"
        case list():
            return "a list"
        case _:
            return "a mapping"
