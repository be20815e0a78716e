"""YAML as kubectl reads it: JSON's types only, duplicate keys refused, every key's line known.

PyYAML alone differs in four ways that bite: `5e-6` is a string to it, `2026-01-01` a date, a second `steps:`
silently replaces the first, and aliases may unfold without end.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeAlias

import yaml
from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue

Path: TypeAlias = tuple[str | int, ...]
_Pairs: TypeAlias = list[tuple[str, re.Pattern[str]]]
_Resolvers: TypeAlias = dict[str, _Pairs]

MAX_CHARACTERS = 1_000_000
"""The API server takes no larger object either."""
MAX_NODES = 100_000
MAX_DEPTH = 100

_CORE = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
# Base 60 (1:30) is left out, as in Go's reader.
_INT = re.compile(r"^[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$")
_KEEP = {_CORE + "bool", _CORE + "null", _CORE + "merge"}


@dataclass(frozen=True)
class Document:
    """One document of a YAML stream: its value, where it starts, and the line of every key and item."""

    value: JsonValue
    line: int
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    """Only scalars that JSON has; a tag beyond them is an error that names its line."""


def _resolvers(inherited: _Resolvers, keep: set[str], added: _Pairs) -> _Resolvers:
    """PyYAML's table, first character -> (tag, pattern): what is kept of the inherited one, then numbers by `added`."""
    kept = {first: [pair for pair in pairs if pair[0] in keep] for first, pairs in inherited.items()}
    return kept | {first: kept.get(first, []) + added for first in "-+.0123456789"}


_NUMBERS: _Pairs = [(_CORE + "int", _INT), (_CORE + "float", _FLOAT)]
_Loader.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers, _KEEP, _NUMBERS)


class Dumper(yaml.SafeDumper):
    """Quotes every string that this module or plain YAML 1.1 would read as something else."""


_ALL = {tag for pairs in yaml.SafeDumper.yaml_implicit_resolvers.values() for tag, _ in pairs}
Dumper.yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers, _ALL, _NUMBERS[1:])


def read_documents(text: str, name: str) -> list[Document]:
    """Parse a YAML stream; empty documents are left out.

    Raises:
        UserError: it is no YAML, or holds duplicate keys, foreign tags, or endless aliases.
    """
    if len(text) > MAX_CHARACTERS:
        rule = f"has {len(text):,} characters; a Kubernetes object may have {MAX_CHARACTERS:,}"
        raise UserError(ValidationIssue(name, None, rule, "give the job file itself"))
    try:
        nodes = list(yaml.compose_all(text, _Loader))
        issues = [issue for node in nodes if node for issue in _faults(node, name)]
        if issues:
            raise UserError(issues)
        return [_document(node) for node in nodes if node and node.tag != _CORE + "null"]
    except yaml.YAMLError as error:
        raise UserError(_told(error, name)) from error
    except RecursionError as error:
        raise UserError(ValidationIssue(name, None, "is nested too deeply", "give the job file itself")) from error


def read_value(text: str) -> JsonValue:
    """The value of one YAML expression, as after `--set path=`.

    Raises:
        UserError: the text is no YAML expression.
    """
    documents = read_documents(text, "value")
    if len(documents) > 1:
        raise UserError(ValidationIssue("value", text, "holds several YAML documents", "write one value"))
    return documents[0].value if documents else None


def _document(node: yaml.Node) -> Document:
    lines: dict[Path, int] = {}
    value = _build(node, (), lines)
    return Document(value, node.start_mark.line + 1, lines)


def _build(node: yaml.Node, path: Path, lines: dict[Path, int]) -> JsonValue:
    """JSON value of a checked node; `lines` gains the line of everything below `path`."""
    lines.setdefault(path, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in (_CORE + "seq", _CORE + "map"):
        raise _unused_tag(node)
    if isinstance(node, yaml.SequenceNode):
        return [_build(item, (*path, index), lines) for index, item in enumerate(node.value)]
    if isinstance(node, yaml.MappingNode):
        built: dict[str, JsonValue] = {}
        for key, item in _pairs(node):
            lines[(*path, key.value)] = key.start_mark.line + 1
            built[key.value] = _build(item, (*path, key.value), lines)
        return built
    return _scalar(node)


def _pairs(node: yaml.MappingNode) -> Iterator[tuple[yaml.ScalarNode, yaml.Node]]:
    """Keys and values; those that `<<` brings come first, so that the mapping's own replace them."""
    own = [(key, item) for key, item in node.value if key.tag != _CORE + "merge"]
    for key, item in node.value:
        if key.tag == _CORE + "merge":
            sources = item.value if isinstance(item, yaml.SequenceNode) else [item]
            # The first source wins, so it is written last.
            for source in reversed(sources):
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(None, None, "<< needs a mapping", source.start_mark)
                yield from _pairs(source)
    yield from own


def _scalar(node: yaml.Node) -> JsonValue:
    text = str(node.value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise yaml.constructor.ConstructorError(None, None, "half a character (surrogate)", node.start_mark)
    try:
        match node.tag.removeprefix(_CORE):
            case "str":
                return text
            case "null":
                return None
            case "bool":
                return text.lower() in ("true", "yes", "on")
            case "int":
                return _integer(text.replace("_", ""))
            case "float" if _FLOAT.match(text):
                number = float(text)
                # JSON has one kind of number, so kubectl hands 1e3 on as 1000. Beyond 2^53 digits would be made up.
                return int(number) if number.is_integer() and abs(number) < 2**53 else number
            case _:
                pass
    except ValueError as error:
        raise yaml.constructor.ConstructorError(None, None, f"{text[:40]!r} is no number", node.start_mark) from error
    raise _unused_tag(node)


def _unused_tag(node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not used here", node.start_mark)


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if digits.startswith("0") and digits[1:].isdigit():
        text = text.replace("0", "0o", 1)
    return int(text, 0)


def _faults(root: yaml.Node, name: str) -> list[ValidationIssue]:
    """Duplicate and odd keys, and aliases that unfold too far, found before anything is built."""
    issues: list[ValidationIssue] = []
    count = 0
    # Aliases are followed each time they occur, so one inside itself runs into the bounds.
    stack: list[tuple[yaml.Node, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            rule = f"has more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
            return [ValidationIssue(name, None, rule, "write the values out, without aliases (*name)", _line(node))]
        if isinstance(node, yaml.SequenceNode):
            stack.extend((item, depth + 1) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            issues += _key_faults(node, name)
            stack.extend((item, depth + 1) for _, item in node.value)
    return issues


def _key_faults(node: yaml.MappingNode, name: str) -> Iterator[ValidationIssue]:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield ValidationIssue(name, None, "has a list or a mapping as a key", "write a plain word", _line(key))
        elif key.value in first:
            rule = f"the key {key.value!r} is on line {first[key.value]} already"
            yield ValidationIssue(name, None, rule, "keep one of the two", _line(key))
        else:
            first[key.value] = line


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _told(error: yaml.YAMLError, name: str) -> ValidationIssue:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        source = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        if "\\t" in problem:
            return ValidationIssue(name, None, "has a tab where YAML wants spaces", "indent with spaces", source)
        return ValidationIssue(
            name, None, f"is not YAML: {problem}", "check indentation, colons and quotes there", source
        )
    return ValidationIssue(name, None, "has characters that YAML does not allow", "save it as plain UTF-8 text")
