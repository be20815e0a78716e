"""From any encoder's batches to unit rows on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import Tensor

BATCH = 32
"""Images or texts a forward pass: about 100 MB of activations for ViT-B at 224 pixels."""

T = TypeVar("T")


def unit_rows(items: Sequence[T], encode: Callable[[Sequence[T]], Tensor], width: int = 0) -> Tensor:
    """float32 [N, D] on the CPU, unit rows; [0, width] for no items."""
    if not items:
        return torch.empty(0, width)
    with torch.no_grad():
        parts = [encode(items[start : start + BATCH]).float().cpu() for start in range(0, len(items), BATCH)]
    return torch.nn.functional.normalize(torch.cat(parts), dim=1)
