"""Reproducible random generators, seeded by a name."""

import random


def seeded(name: str) -> random.Random:
    """A generator whose sequence depends only on the name, on every machine."""
    return random.Random(name)  # noqa: S311 - not used for secrets
