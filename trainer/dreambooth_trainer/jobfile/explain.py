"""Converts pydantic's errors to validation issues: path, value, rule, remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, JsonValue, ValidationError
from pydantic_core import ErrorDetails

from dreambooth_api import fields, imageprompt, uris
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.jobfile.schema import EXAMPLES, closest_match, format_path, keys_of, model_of, schema_at
from dreambooth_trainer.jobfile.yamltext import Path

M = TypeVar("M", bound=BaseModel)

_BUCKETS = [f"{scheme}://bucket/folder" for scheme in uris.EXTRAS]
PATTERNS: dict[str, tuple[str, str]] = {
    fields.UID: ("must consist of letters, digits and hyphens", "remove it; the API server sets it"),
    fields.DNS_LABEL: (
        "must be a Kubernetes name: at most 63 lowercase letters, digits and hyphens",
        "write, for example, my-dog",
    ),
    fields.DNS_SUBDOMAIN: (
        "must be a Kubernetes name: lowercase letters, digits, hyphens and periods",
        "write, for example, my-dog",
    ),
    fields.TEMPLATE: (
        "must be a single line that contains {} once, as the placeholder of the subject, and no other braces",
        "write, for example, 'a {} on the beach', in quotes",
    ),
    fields.PHRASE: (
        "must be a single line of text without braces",
        "write, for example, a sks dog, or dog for a class",
    ),
    fields.QUANTITY: ("must be a Kubernetes quantity", "write, for example, '4', 500m or 16Gi"),
    fields.TOKEN: ("must be a single word of at most 32 characters without braces", "write, for example, sks, or auto"),
    fields.RELATIVE_PATH: (
        "must be a folder in the volume: a relative path without '.', '..' or hidden folders",
        "write, for example, photos/dog",
    ),
    imageprompt.SAFETENSORS_PATH: (
        "must be a safetensors file in the repository: a relative path without '.', '..' or hidden folders",
        "write, for example, models/ip-adapter_sd15.safetensors",
    ),
    uris.SOURCE_URI: (
        f"must be a local folder, {', '.join(_BUCKETS)}, https://host/photos.zip or {uris.BUILTIN_SUBJECT}",
        "write, for example, photos/",
    ),
    uris.OUTPUT_URI: (
        f"must be a local folder, {', '.join(_BUCKETS)} or {uris.HUB}owner/name",
        "write, for example, out/my-dog",
    ),
}
"""Rule and remedy of each pattern in the API. A test checks that no pattern is missing."""

_TYPES = {
    "int_type": ("must be an integer", "a number without quotes"),
    "float_type": ("must be a number", "a number without quotes"),
    "bool_type": ("must be true or false", "true or false, without quotes"),
    "string_type": ("must be a string", "it in quotes"),
    "list_type": ("must be a list", "one item per line, each after a dash: - item"),
    "dict_type": ("must be a mapping", "key: value, one per line"),
}
_BOUNDS = {
    "greater_than": ("must be greater than", "gt"),
    "greater_than_equal": ("must be at least", "ge"),
    "less_than": ("must be less than", "lt"),
    "less_than_equal": ("must be at most", "le"),
}


def validate(
    root: type[M], value: JsonValue, source: Callable[[Path], str] = lambda _path: "", name: str = "document"
) -> M:
    """Build a model from the value of a YAML document.

    Args:
        source: returns the origin of the value at a path, for example "line 7"; empty if unknown.
        name: name of the document, for issues that concern it as a whole.

    Raises:
        UserError: with all issues.
    """
    try:
        # By alias only: the API server would reject the snake_case names that Python callers may use.
        return root.model_validate(value, strict=True, by_alias=True, by_name=False)
    except ValidationError as error:
        details = error.errors(include_url=False)
    raise UserError([_issue(root, detail, source, name) for detail in details])


def unknown_key(key: str, model: type[BaseModel]) -> tuple[str, str]:
    """Rule and remedy for a key that `model` does not have."""
    known = list(keys_of(model))
    suggestion = closest_match(key, known)
    remedy = f"did you mean {suggestion}?" if suggestion else f"allowed keys: {', '.join(known)}"
    return "is not a known key", remedy


def _issue(root: type[BaseModel], detail: ErrorDetails, source: Callable[[Path], str], name: str) -> ValidationIssue:
    path: Path = detail["loc"]
    context: Mapping[str, Any] = detail.get("ctx", {})
    value: object = detail["input"]
    match detail["type"]:
        case "rule":
            path += tuple(str(context["at"]).split(".", 1)) if context["at"] else ()
            value, rule, remedy = None, str(context["rule"]), str(context["remedy"])
        case "missing":
            value, rule, remedy = None, "is required", _example(root, path)
            return ValidationIssue(format_path(path), value, rule, remedy, source(path[:-1]))
        case "extra_forbidden":
            model = model_of(schema_at(root, path[:-1]).annotation)
            value = None
            rule, remedy = unknown_key(str(path[-1]), model or root)
        case kind:
            rule, remedy = _rule(root, kind, path, value, context, detail["msg"])
    return ValidationIssue(format_path(path) if path else name, _scalar_or_none(value), rule, remedy, source(path))


def _rule(
    root: type[BaseModel], kind: str, path: Path, value: object, context: Mapping[str, Any], message: str
) -> tuple[str, str]:
    key = str(path[-1]) if path else ""
    if kind in _TYPES:
        rule, expected = _TYPES[kind]
        if kind == "int_type" and isinstance(value, float):
            return rule, f"write {int(value)} or {int(value) + 1}"
        if kind == "string_type" and not isinstance(value, int | float):
            expected = "a string"
        return f"{rule}, not {_type_name(value)}", f"write {expected}"
    if kind in _BOUNDS:
        comparison, bound = _BOUNDS[kind]
        return f"{comparison} {_number(context[bound])}", f"write {_within_bound(root, path, kind, context[bound])}"
    match kind:
        case "literal_error":
            return _choice(root, path, value, key)
        case "string_pattern_mismatch":
            return PATTERNS.get(str(context["pattern"]), (f"must match {context['pattern']}", "change it"))
        case "string_too_short" | "too_short":
            return "must not be empty", "set a value, or omit the key to use the default"
        case "string_too_long":
            return f"has {len(str(value))} characters, the maximum is {context['max_length']}", "shorten it"
        case "too_long":
            return f"has {context['actual_length']} items, the maximum is {context['max_length']}", "remove items"
        case "multiple_of":
            step = int(context["multiple_of"])
            below = int(str(value)) // step * step
            return f"must be a multiple of {step}", f"write {below or step} or {below + step}"
        case "model_type" | "model_attributes_type":
            model = model_of(schema_at(root, path).annotation) or root
            keys = ", ".join(keys_of(model))
            return f"must be a mapping, not {_type_name(value)}", f"write a mapping with the keys {keys}"
        case _:
            return message[:1].lower() + message[1:], "change it"


def _choice(root: type[BaseModel], path: Path, value: object, key: str) -> tuple[str, str]:
    choices = [str(choice) for choice in _literals(root, path)]
    suggestion = closest_match(str(value), choices)
    prefix = f"{key}: " if key and not isinstance(path[-1], int) else ""
    rule = f"must be {choices[0]}" if len(choices) == 1 else f"must be one of {', '.join(choices)}"
    return rule, f"write {prefix}{suggestion or choices[0]}"


def _literals(root: type[BaseModel], path: Path) -> list[object]:
    def collect(annotation: Any) -> list[object]:
        arguments = get_args(annotation)
        if not arguments:
            return [] if isinstance(annotation, type) else [annotation]
        return [value for argument in arguments for value in collect(argument)]

    return [value for value in collect(schema_at(root, path).annotation) if isinstance(value, str)]


def _within_bound(root: type[BaseModel], path: Path, kind: str, bound: float) -> str:
    """Values that satisfy a violated bound: the default, or the learning rate of the paper, if there is one."""
    field = schema_at(root, path).field
    default = field.get_default() if field else None
    if isinstance(default, int | float) and not isinstance(default, bool):
        return f"a value such as {_number(default)}"
    if path and path[-1] == "learningRate":
        return "a value such as 5e-6"
    return f"{_number(bound)} or {'more' if kind.startswith('greater') else 'less'}"


def _example(root: type[BaseModel], path: Path) -> str:
    known = EXAMPLES.get(".".join(map(str, path)))
    if known:
        return f"add, for example, {known}"
    field = schema_at(root, path).field
    return f"add {path[-1]}: {field.description if field and field.description else '...'}"


def _scalar_or_none(value: object) -> object:
    # Lists and mappings would make the message too long to read.
    return value if isinstance(value, str | int | float) else None


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) and abs(value) < 1e6 else str(value)


def _type_name(value: object) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "a Boolean"
        case int() | float():
            return "a number"
        case str():
            return "a string"
        case list():
            return "a list"
        case _:
            return "a mapping"
