"""Parsing of selected fields of lists and events.

A cache keeps a few fields of each object. The others, above all `managedFields` and pod templates, are most of an
object's JSON; without Python objects for them, parsing takes half the time.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic_core import SchemaValidator, core_schema

# The fields to read, and of each the fields to read in turn: of an object, of each object in a list, or all (None).
Fields = Mapping[str, "Fields | list[Fields] | None"]

_STATUS: Fields = {"code": None, "reason": None, "message": None}  # in an event of type ERROR


class PartialParser:
    """Parses lists of objects, and events of a watch, with these fields of each object.

    Other fields are missing in the result. Objects have the same values as with a complete parser.
    """

    def __init__(self, fields: Fields) -> None:
        page: Fields = {"metadata": {"resourceVersion": None, "continue": None}, "items": [fields]}
        self.page = SchemaValidator(_schema(page))
        self.event = SchemaValidator(_schema({"type": None, "object": {**_STATUS, **fields}}))


def _schema(fields: Fields | list[Fields] | None) -> core_schema.CoreSchema:
    if fields is None:
        return core_schema.any_schema()
    if isinstance(fields, list):
        return core_schema.nullable_schema(core_schema.list_schema(_schema(fields[0])))
    known: dict[str, Any] = {
        name: core_schema.typed_dict_field(_schema(inner), required=False) for name, inner in fields.items()
    }
    return core_schema.nullable_schema(core_schema.typed_dict_schema(known, extra_behavior="ignore"))
