"""Parsing of JSON from the API server, with a limit on nesting.

The API server accepts objects with 10,000 levels of nesting, and repeats the levels in `managedFields`. A list or a
watch contains objects of all tenants, so one such object must not make the whole response unreadable.
"""

from __future__ import annotations

import asyncio
import re

from pydantic_core import SchemaValidator, ValidationError, from_json

from dreambooth_operator.machinery.resources import Json

# The deepest objects of Kubernetes and KubeRay have about 20 levels. The parser rejects more than 200.
MAX_DEPTH = 100
TOO_DEEP = f"(nested deeper than {MAX_DEPTH} levels)"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


async def parse_json(text: bytes, partial: SchemaValidator | None = None) -> Json:
    """Parse `text`. Values nested deeper than MAX_DEPTH are replaced by the text TOO_DEEP.

    With `partial`, only the fields that it selects are parsed, unless an object has not the expected structure.

    Raises:
        ValueError: the text is not JSON.
    """
    try:
        if partial:
            return partial.validate_json(text)
    except ValidationError:
        pass
    try:
        return from_json(text)
    except ValueError:
        # Pruning is slow, because it visits every bracket, so it must not block the event loop.
        return from_json(await asyncio.to_thread(prune, text))


def prune(text: bytes) -> bytes:
    """Replace each list and object nested deeper than MAX_DEPTH by TOO_DEEP, without recursion."""
    kept: list[bytes] = []
    depth = done = 0
    for token in _TOKEN.finditer(text):
        bracket = text[token.start() : token.start() + 1]
        if bracket in b"[{":
            if depth == MAX_DEPTH:
                kept += (text[done : token.start()], b'"', TOO_DEEP.encode(), b'"')
            depth += 1
        elif bracket in b"]}":
            depth -= 1
            if depth == MAX_DEPTH:
                done = token.end()
    return b"".join((*kept, text[done:]))
