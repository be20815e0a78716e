"""Parses YAML as kubectl does: JSON types only, duplicate keys rejected, line numbers of all keys.

PyYAML differs from kubectl in four ways: it parses `5e-6` as a string and `2026-01-01` as a date, a second `steps:`
silently replaces the first, and it does not limit the expansion of aliases.
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
"""About the maximum size of an object in etcd."""
MAX_NODES = 100_000
MAX_DEPTH = 100

_CORE = "tag:yaml.org,2002:"
_FLOAT = re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$")
# Without base 60 (1:30), as in Go's YAML parser.
_INT = re.compile(r"^[-+]?(0b[01_]+|0x[0-9a-fA-F_]+|0o?[0-7_]+|0|[1-9][0-9_]*)$")
_KEEP = {_CORE + "bool", _CORE + "null", _CORE + "merge"}


@dataclass(frozen=True)
class Document:
    """One document of a YAML stream: its value, its first line, and the line of each key and item by path."""

    value: JsonValue
    line: int
    lines: dict[Path, int]


class _Loader(yaml.SafeLoader):
    """Resolves plain scalars to the types that JSON has."""


def _resolvers(inherited: _Resolvers, keep: set[str], added: _Pairs) -> _Resolvers:
    """PyYAML's table, first character -> (tag, pattern): the inherited tags in `keep`, then `added` for numbers."""
    kept = {first: [pair for pair in pairs if pair[0] in keep] for first, pairs in inherited.items()}
    return kept | {first: kept.get(first, []) + added for first in "-+.0123456789"}


_NUMBERS: _Pairs = [(_CORE + "int", _INT), (_CORE + "float", _FLOAT)]
_Loader.yaml_implicit_resolvers = _resolvers(yaml.SafeLoader.yaml_implicit_resolvers, _KEEP, _NUMBERS)


class Dumper(yaml.SafeDumper):
    """Quotes all strings that this module or a YAML 1.1 parser would read as another type."""


_ALL = {tag for pairs in yaml.SafeDumper.yaml_implicit_resolvers.values() for tag, _ in pairs}
Dumper.yaml_implicit_resolvers = _resolvers(yaml.SafeDumper.yaml_implicit_resolvers, _ALL, _NUMBERS[1:])


def read_documents(text: str, name: str) -> list[Document]:
    """Parse a YAML stream. Empty documents are skipped.

    Raises:
        UserError: invalid YAML, duplicate keys, tags other than JSON types, or too many aliases.
    """
    if len(text) > MAX_CHARACTERS:
        rule = f"has {len(text):,} characters, the maximum of a Kubernetes object is {MAX_CHARACTERS:,}"
        raise UserError(ValidationIssue(name, None, rule, "pass a job file"))
    try:
        nodes = list(yaml.compose_all(text, _Loader))
        issues = [issue for node in nodes if node for issue in _structure_issues(node, name)]
        if issues:
            raise UserError(issues)
        return [_document(node) for node in nodes if node and node.tag != _CORE + "null"]
    except yaml.YAMLError as error:
        raise UserError(_syntax_issue(error, name)) from error
    except RecursionError as error:
        raise UserError(ValidationIssue(name, None, "is nested too deeply", "pass a job file")) from error


def read_value(text: str) -> JsonValue:
    """Parse the value of `--set path=value`; None for an empty text.

    Raises:
        UserError: invalid YAML, or more than one document.
    """
    documents = read_documents(text, "value")
    if len(documents) > 1:
        raise UserError(ValidationIssue("value", text, "contains several YAML documents", "write a single value"))
    return documents[0].value if documents else None


def _document(node: yaml.Node) -> Document:
    lines: dict[Path, int] = {}
    value = _build(node, (), lines)
    return Document(value, node.start_mark.line + 1, lines)


def _build(node: yaml.Node, path: Path, lines: dict[Path, int]) -> JsonValue:
    """Convert a checked node to a JSON value, and add the line of each path to `lines`."""
    lines.setdefault(path, node.start_mark.line + 1)
    if not isinstance(node, yaml.ScalarNode) and node.tag not in (_CORE + "seq", _CORE + "map"):
        raise _unsupported_tag(node)
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
    """Keys and values of a mapping. Those merged by `<<` come first, so that the mapping's own keys replace them."""
    own = [(key, item) for key, item in node.value if key.tag != _CORE + "merge"]
    for key, item in node.value:
        if key.tag == _CORE + "merge":
            sources = item.value if isinstance(item, yaml.SequenceNode) else [item]
            # The first source has precedence, so it comes last.
            for source in reversed(sources):
                if not isinstance(source, yaml.MappingNode):
                    raise yaml.constructor.ConstructorError(None, None, "<< requires a mapping", source.start_mark)
                yield from _pairs(source)
    yield from own


def _scalar(node: yaml.Node) -> JsonValue:
    text = str(node.value)
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise yaml.constructor.ConstructorError(None, None, "unpaired surrogate character", node.start_mark)
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
                # kubectl converts to JSON, where 1e3 is the integer 1000. Above 2^53, floats are not exact integers.
                return int(number) if number.is_integer() and abs(number) < 2**53 else number
            case _:
                pass
    except ValueError as error:
        raise yaml.constructor.ConstructorError(
            None, None, f"{text[:40]!r} is not a number", node.start_mark
        ) from error
    raise _unsupported_tag(node)


def _unsupported_tag(node: yaml.Node) -> yaml.YAMLError:
    return yaml.constructor.ConstructorError(None, None, f"the tag {node.tag!r} is not supported", node.start_mark)


def _integer(text: str) -> int:
    digits = text.lstrip("+-")
    if digits.startswith("0") and digits[1:].isdigit():
        text = text.replace("0", "0o", 1)
    return int(text, 0)


def _structure_issues(root: yaml.Node, name: str) -> list[ValidationIssue]:
    """Duplicate keys, keys that are not scalars, and too many expanded aliases."""
    issues: list[ValidationIssue] = []
    count = 0
    # Each occurrence of an alias is followed, so a recursive alias exceeds the bounds.
    stack: list[tuple[yaml.Node, int]] = [(root, 0)]
    while stack:
        node, depth = stack.pop()
        count += 1
        if count > MAX_NODES or depth > MAX_DEPTH:
            rule = f"has more than {MAX_NODES:,} values or {MAX_DEPTH} levels"
            return [ValidationIssue(name, None, rule, "replace aliases (*name) by their values", _line(node))]
        if isinstance(node, yaml.SequenceNode):
            stack.extend((item, depth + 1) for item in node.value)
        elif isinstance(node, yaml.MappingNode):
            issues += _key_issues(node, name)
            stack.extend((item, depth + 1) for _, item in node.value)
    return issues


def _key_issues(node: yaml.MappingNode, name: str) -> Iterator[ValidationIssue]:
    first: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            yield ValidationIssue(name, None, "has a list or a mapping as a key", "use a string as the key", _line(key))
        elif key.value in first:
            rule = f"duplicate key {key.value!r}, first set on line {first[key.value]}"
            yield ValidationIssue(name, None, rule, "remove one of the two", _line(key))
        else:
            first[key.value] = line


def _line(node: yaml.Node) -> str:
    return f"line {node.start_mark.line + 1}"


def _syntax_issue(error: yaml.YAMLError, name: str) -> ValidationIssue:
    if isinstance(error, yaml.MarkedYAMLError):
        mark = error.problem_mark or error.context_mark
        source = f"line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = " ".join(filter(None, (error.context, error.problem)))
        if "\\t" in problem:
            return ValidationIssue(name, None, "is indented with a tab", "indent with spaces", source)
        return ValidationIssue(
            name, None, f"is not valid YAML: {problem}", "check indentation, colons and quotes", source
        )
    return ValidationIssue(name, None, "contains characters that YAML does not allow", "save it as UTF-8 text")
