"""Models that read what another version wrote: unknown fields are ignored, and invalid values are dropped."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar, cast

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.alias_generators import to_camel

M = TypeVar("M", bound=BaseModel)
Path = tuple[int | str, ...]


class Lenient(BaseModel):
    """Base of status models. Unknown fields are ignored, because a newer version may have written them."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="ignore", frozen=True)


def parse_leniently(model: type[M], fields: Mapping[str, object]) -> tuple[M, list[str]]:
    """The model with these fields, and the paths of the invalid values that were dropped.

    Unknown fields of a `Lenient` model are ignored without being listed.

    Raises:
        ValidationError: a required field of the model itself is missing or invalid.
    """
    left: dict[str, object] | None = None
    dropped: list[str] = []
    while True:
        try:
            return model.model_validate(dict(fields) if left is None else left), dropped
        except ValidationError as error:
            if left is None:  # nearly all fields are valid, and a copy takes longer than their validation
                left = copy.deepcopy(dict(fields))
            paths = [_existing(left, issue["loc"]) for issue in error.errors(include_url=False, include_input=False)]
            invalid = dict.fromkeys(path for path in paths if path)
            if not invalid:
                raise
            # Backward, so that the removal of an item does not change the index of another.
            for path in reversed(invalid):
                _remove(left, path)
            dropped += [".".join(map(str, path)) for path in invalid]


def _existing(fields: Mapping[str, object], path: Path) -> Path:
    """The part of `path` that exists in `fields`, down to the first list item."""
    node: object = fields
    for depth, step in enumerate(path):
        if not _contains(node, step):
            return path[:depth]
        if isinstance(node, list):  # an item is dropped as a whole
            return path[: depth + 1]
        node = cast("dict[int | str, object]", node)[step]
    return path


def _contains(node: object, step: int | str) -> bool:
    if isinstance(node, dict):
        return step in node
    return isinstance(node, list) and isinstance(step, int) and step < len(cast("Sequence[object]", node))


def _remove(fields: dict[str, object], path: Path) -> None:
    """Remove the value at `path`, unless an earlier removal has removed its parent."""
    node: Any = fields
    for step in path[:-1]:
        if not _contains(node, step):
            return
        node = node[step]
    if _contains(node, path[-1]):
        del node[path[-1]]
