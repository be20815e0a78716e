"""Conversion of pydantic models to the structural schemas of a CRD.

Unlike JSON schema, a structural schema has no `$ref`, `null` or `const`, and exclusive bounds are flags. An optional
object gets the default `{}` only if none of its fields is required, because the API server applies the defaults of
nested fields only if their parent is present.
"""

from __future__ import annotations

import copy
from typing import Any

from pydantic import BaseModel

Schema = dict[str, Any]
_KEPT = (
    "description", "default", "enum", "format", "pattern", "minLength", "maxLength", "minimum", "maximum",
    "multipleOf", "minItems", "maxItems", "minProperties", "maxProperties",
)  # fmt: skip
_FREE_FORM: Schema = {"x-kubernetes-preserve-unknown-fields": True}


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of `model`. Raises ValueError for types that a CRD cannot express."""
    raw = model.model_json_schema(by_alias=True)
    return _convert(raw, raw.get("$defs", {}), model.__name__)


def _convert(node: Schema, definitions: Schema, at: str) -> Schema:
    node = _resolve(node, definitions, at)
    schema: Schema = {key: copy.deepcopy(node[key]) for key in _KEPT if key in node}
    if schema.get("default", ...) is None:
        del schema["default"]
    if "const" in node:
        schema["enum"] = [node["const"]]
    for flag, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if flag in node:
            schema[bound], schema[flag] = node[flag], True
    kind = node.get("type")
    if kind is None:
        return {**schema, **_FREE_FORM}
    schema["type"] = kind
    if kind == "object":
        _convert_object(schema, node, definitions, at)
    elif kind == "array":
        schema["items"] = _convert(node["items"], definitions, f"{at}[]")
    return schema


def _convert_object(schema: Schema, node: Schema, definitions: Schema, at: str) -> None:
    if properties := node.get("properties"):
        schema["properties"] = {
            name: _convert(child, definitions, f"{at}.{name}") for name, child in properties.items()
        }
        if required := node.get("required"):
            schema["required"] = list(required)
        for name, child in schema["properties"].items():
            # A field with a default factory has no default in its schema, unlike `X | None`, whose default is null.
            has_factory = name not in schema.get("required", ()) and "default" not in properties[name]
            if has_factory and child.get("properties") and not child.get("required"):
                child["default"] = {}
        if node.get("additionalProperties") is True:
            schema.update(_FREE_FORM)
        return
    values = node.get("additionalProperties", True)
    if values is True or not _resolve(values, definitions, at).get("type"):
        schema.update(_FREE_FORM)
    else:
        schema["additionalProperties"] = _convert(values, definitions, f"{at}{{}}")


def _resolve(node: Schema, definitions: Schema, at: str) -> Schema:
    """Resolve `$ref` and drop the null of `X | None`. Keywords next to a reference override those of its target."""
    if "$ref" in node:
        target = definitions[node["$ref"].rpartition("/")[2]]
        siblings = {key: value for key, value in node.items() if key != "$ref"}
        return _resolve({**target, **siblings}, definitions, at)
    if "allOf" in node and len(node["allOf"]) == 1:
        siblings = {key: value for key, value in node.items() if key != "allOf"}
        return _resolve({**node["allOf"][0], **siblings}, definitions, at)
    if "anyOf" in node:
        options = [option for option in node["anyOf"] if option.get("type") != "null"]
        if len(options) != 1:
            raise ValueError(f"{at}: a CRD field has one type, not {len(options)}: {node['anyOf']}")
        siblings = {key: value for key, value in node.items() if key != "anyOf"}
        return _resolve({**_resolve(options[0], definitions, at), **siblings}, definitions, at)
    return node
