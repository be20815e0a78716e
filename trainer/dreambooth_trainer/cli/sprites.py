"""`dreambooth sprites`: the embedded base model and the drawn subjects it is tried on."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def sprites() -> None:
    """The embedded base model: train it anew, check it, write its subjects as images."""
