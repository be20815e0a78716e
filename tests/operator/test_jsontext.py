"""Parsing of deeply nested JSON: only the part beyond the limit is lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dreambooth_operator.machinery.client import ApiError, parsed
from dreambooth_operator.machinery.jsontext import MAX_DEPTH, TOO_DEEP, parse_json, prune

TEXT = st.text(st.characters(exclude_categories=("Cs",)) | st.sampled_from('"\\[]{}\n'))
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=20,
)


def nested(levels: int, inside: str = "1", bracket: str = '{"a":') -> str:
    """JSON text with this many levels of objects or lists."""
    return bracket * levels + inside + ("}" if "{" in bracket else "]") * levels


def depth_of(value: Any) -> int:
    levels = 0
    while isinstance(value, dict | list):
        value, levels = next(iter(value.values() if isinstance(value, dict) else value), None), levels + 1
    return levels


@given(VALUES)
async def test_shallow_values_are_unchanged(value: Any) -> None:
    text = json.dumps(value, ensure_ascii=False).encode()
    assert prune(text) == text
    assert await parse_json(text) == value


@given(before=VALUES, inside=VALUES, after=VALUES, bracket=st.sampled_from(['{"a":', "[", '{"]}\\"":']))
async def test_only_the_part_beyond_the_limit_is_lost(before: Any, inside: Any, after: Any, bracket: str) -> None:
    deep = nested(1500, json.dumps(inside), bracket)
    text = f'{{"items": [{json.dumps(before)}, {{"x": {deep}, "y": 1}}, {deep}, {json.dumps(after)}]}}'
    first, bad, other, last = (await parse_json(text.encode()))["items"]
    assert (first, last, bad["y"]) == (before, after, 1)
    assert depth_of(other) == MAX_DEPTH - 2
    assert TOO_DEEP in json.dumps(bad)


@pytest.mark.parametrize("levels", [99, 100, 101, 200, 201, 1500, 9_999, 200_000])
@pytest.mark.parametrize("bracket", ["[", '{"a":'])
async def test_any_depth_can_be_parsed(levels: int, bracket: str) -> None:
    read = await parse_json(nested(levels, bracket=bracket).encode())
    assert depth_of(read) == (levels if levels <= 200 else MAX_DEPTH), "the limit of the parser is 200"
    json.dumps(read)


@pytest.mark.parametrize("text", [b"", b"{", b"]", b"[}", b'{"a"', b"nonsense", b'"\xff"', b"[" * 300, b"]" * 300])
async def test_invalid_json_is_an_error_of_the_server(text: bytes) -> None:
    with pytest.raises(ApiError, match="is not JSON") as error:
        await parsed(text)
    assert error.value.is_transient
