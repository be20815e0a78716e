"""The depth of nested values, measured without recursion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

# For free-form settings. The API server would take 10,000 levels, and most readers fail on them.
MAX_DEPTH = 8


def is_deeper(value: object, levels: int) -> bool:
    """Whether mappings and lists are nested more than `levels` deep."""
    layer = _containers([value])
    for _ in range(levels):
        layer = _containers(child for node in layer for child in (node.values() if isinstance(node, dict) else node))
    return bool(layer)


def _containers(values: Iterable[object]) -> list[dict[object, object] | list[object]]:
    return [cast("dict[object, object] | list[object]", value) for value in values if isinstance(value, dict | list)]
