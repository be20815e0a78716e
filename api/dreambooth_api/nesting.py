"""The depth of nested values, measured without recursion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

# Limit for free-form settings. The API server accepts 10,000 levels, at which most parsers fail.
MAX_DEPTH = 8


def is_deeper(value: object, levels: int) -> bool:
    """Whether mappings and lists are nested more than `levels` deep."""
    layer = _containers([value])
    for _ in range(levels):
        layer = _containers(child for node in layer for child in (node.values() if isinstance(node, dict) else node))
    return bool(layer)


def _containers(values: Iterable[object]) -> list[dict[object, object] | list[object]]:
    return [cast("dict[object, object] | list[object]", value) for value in values if isinstance(value, dict | list)]
