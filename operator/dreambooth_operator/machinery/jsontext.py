"""JSON from the API server: parsed without recursion trouble, whatever a tenant stored.

The API server accepts 10,000 levels of nesting in one object, and repeats them in `managedFields`. A list
or a watch carries the objects of all tenants, so one such object must not make the whole answer unreadable.
"""

from __future__ import annotations

import asyncio
import re

from pydantic_core import from_json

from dreambooth_operator.machinery.resources import Json

# The deepest objects of Kubernetes and KubeRay have about 20 levels. The parser refuses more than 200.
MAX_DEPTH = 100
TOO_DEEP = f"(nested deeper than {MAX_DEPTH} levels)"
_TOKEN = re.compile(rb'"[^"\\]*(?:\\.[^"\\]*)*"|[\[\]{}]', re.DOTALL)


async def parse_json(text: bytes) -> Json:
    """The document in `text`; what is nested deeper than MAX_DEPTH is replaced by the text TOO_DEEP.

    Raises:
        ValueError: it is not JSON.
    """
    try:
        return from_json(text)
    except ValueError:
        # Slow, as it looks at every bracket, so the event loop goes on meanwhile.
        return from_json(await asyncio.to_thread(prune, text))


def prune(text: bytes) -> bytes:
    """`text`, with each list and object that lies deeper than MAX_DEPTH replaced by TOO_DEEP. Does not recurse."""
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
