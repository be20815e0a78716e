"""Reproducible chance: every random choice of the world hangs on a name."""

import random


def seeded(name: str) -> random.Random:
    """A generator that is the same for the same name, on every machine."""
    return random.Random(name)  # noqa: S311 - for drawings, not for secrets
