"""Squared distances of trained weights from the base model's, as modules that ZeRO-3 can gather weights for.

Each takes the sum of the distances before it and returns the sum with its own. The weights belong to the trained
modules, so they are not registered here; see `Preservation.borrowed`.
"""

from __future__ import annotations

import contextlib
from typing import Any

import torch
from torch import Tensor, nn


class Distance(nn.Module):
    """The squared distance of some weights.

    Attributes:
        weights: trained parameters of another module.
    """

    def __init__(self, *weights: nn.Parameter) -> None:
        super().__init__()
        self.weights = weights


class Offset(Distance):
    """The squared distance of a weight from the value that it starts with, which is kept as `base`."""

    def __init__(self, weight: nn.Parameter) -> None:
        super().__init__(weight)
        self.base = nn.Parameter(weight.detach().clone(), requires_grad=False)

    def forward(self, before: Tensor) -> Tensor:
        return before + _SquaredDistance.apply(self.weights[0], self.base)


class Norm(Distance):
    """The squared norm of scaling x B A: the distance from the base model of a layer with a low-rank adapter.

    It is the sum of all elements of scaling^2 x (B^T B) * (A A^T), which are matrices of the size of the rank.
    """

    def __init__(self, down: nn.Parameter, up: nn.Parameter, scaling: float) -> None:
        """Make the module.

        Args:
            down: A, [rank, inputs, ...].
            up: B, [outputs, rank, ...].
        """
        super().__init__(down, up)
        self.scaling = scaling

    def forward(self, before: Tensor) -> Tensor:
        down, up = (weight.flatten(1).float() for weight in self.weights)
        # Memory is counted on the meta device, which has no autocast.
        with contextlib.nullcontext() if before.is_meta else torch.autocast(before.device.type, enabled=False):
            return before + self.scaling**2 * ((up.T @ up) * (down @ down.T)).sum()


class _SquaredDistance(torch.autograd.Function):
    """The sum of squared differences, in fp32. Keeps no differences for the backward pass, which computes them again.

    They would take as much memory as the model.
    """

    @staticmethod
    def forward(ctx: Any, weight: Tensor, base: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx.save_for_backward(weight, base)
        return (weight.float() - base.float()).square().sum()

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        weight, base = ctx.saved_tensors
        return (2 * gradient * (weight.float() - base.float())).to(weight.dtype), None
