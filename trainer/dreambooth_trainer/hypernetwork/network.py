"""The network that predicts adapters from images (HyperDreamBooth, Ruiz et al. 2024), and its loss.

It differs from the paper's: it predicts once and does not refine its prediction; its input is the features of whole
images from a frozen encoder; and A and B are those of LoRA, not of a decomposition with fixed factors.
Legend: N adapters, D features, L layers, r rank, i inputs and o outputs of a layer (convolutions are flattened).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from dreambooth_trainer.hypernetwork.files import LayerShape

Adapters: TypeAlias = "Mapping[str, tuple[Tensor, Tensor]]"
"""A [N, r, i] and B [N, o, r] of each layer."""

WIDTH, HEADS, BLOCKS = 128, 4, 2
BASIS = 32
"""Directions in which A and B of a layer can differ from their means."""


class AdapterNetwork(nn.Module):
    """A learned query per layer attends to the others with the features added, and two heads give A and B.

    A layer's A is its mean over the training jobs plus r combinations of `BASIS` learned directions, and so is its B.
    The directions begin at zero: an untrained network predicts the mean adapter.
    """

    def __init__(self, features: int, layers: Mapping[str, LayerShape]) -> None:
        super().__init__()
        self.names = list(layers)
        self.rank = next(iter(layers.values())).down[0]
        self.offset, self.scale = (nn.Parameter(value, requires_grad=False) for value in torch.stack(
            [torch.zeros(features), torch.ones(features)]
        ))  # fmt: skip
        self.embed = nn.Linear(features, WIDTH)
        self.queries = nn.Parameter(torch.randn(len(layers), WIDTH))
        block = nn.TransformerEncoderLayer(WIDTH, HEADS, 2 * WIDTH, dropout=0.0, batch_first=True, norm_first=True)
        self.blocks = nn.TransformerEncoder(block, BLOCKS, nn.LayerNorm(WIDTH), enable_nested_tensor=False)
        self.down_head, self.up_head = (nn.Linear(WIDTH, self.rank * BASIS) for _ in range(2))
        sizes = [(torch.Size(one.down)[1:].numel(), one.up[0]) for one in layers.values()]
        self.mean_down = nn.ParameterList(torch.zeros(self.rank, inputs) for inputs, _ in sizes)
        self.mean_up = nn.ParameterList(torch.zeros(outputs, self.rank) for _, outputs in sizes)
        self.down = nn.ParameterList(torch.zeros(BASIS, inputs) for inputs, _ in sizes)
        self.up = nn.ParameterList(torch.zeros(outputs, BASIS) for _, outputs in sizes)

    def start_from(self, adapters: Adapters, features: Tensor) -> None:
        """Set the mean adapter, and the normalization of the features [N, D], to those of the training jobs."""
        self.offset.data.copy_(features.mean(0))
        self.scale.data.copy_(features.std(0, correction=0).clamp(min=1e-3))
        for index, name in enumerate(self.names):
            down, up = adapters[name]
            self.mean_down[index].data.copy_(down.mean(0))
            self.mean_up[index].data.copy_(up.mean(0))

    def forward(self, features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Features [N, D], each the mean over the images of a subject -> their adapters."""
        embedded = self.embed((features - self.offset) / self.scale)
        tokens = self.blocks(self.queries + embedded[:, None])  # [N, L, WIDTH]
        rows = self.down_head(tokens).unflatten(-1, (self.rank, BASIS))  # [N, L, r, BASIS]
        columns = self.up_head(tokens).unflatten(-1, (BASIS, self.rank))  # [N, L, BASIS, r]
        return {
            name: (
                self.mean_down[index] + rows[:, index] @ self.down[index],
                self.mean_up[index] + self.up[index] @ columns[:, index],
            )
            for index, name in enumerate(self.names)
        }


def inner(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The inner products <B1 A1, B2 A2> of the products of adapters, [N], without building the products.

    tr((B1 A1)^T B2 A2) is the sum of all elements of (B1^T B2) * (A1 A2^T), which are matrices of the size of the rank.
    """
    (down1, up1), (down2, up2) = one, other
    return ((up1.mT @ up2) * (down1 @ down2.mT)).sum((-2, -1))


def relative_error(predicted: Adapters, true: Adapters) -> Tensor:
    """Squared Frobenius distance of the products B A of all layers, relative to the squared norm of the true ones, [N].

    It depends on the products only, so (R A, B R^-1) has the error of (A, B). The scale alpha / rank, which is that of
    all layers, cancels out.
    """
    pairs = [(predicted[name], true[name]) for name in true]
    distance = sum(inner(one, one) - 2 * inner(one, other) + inner(other, other) for one, other in pairs)
    norm = sum(inner(other, other) for _, other in pairs)
    assert isinstance(distance, Tensor)
    return distance / norm


def constant_error(known: Adapters, true: Adapters) -> Tensor:
    """The `relative_error` of predicting for all subjects the mean of the products of known adapters, [N].

    That is the constant with the lowest error for the known ones. Its rank is not limited to that of an adapter. One
    product exists at a time, [o, i].
    """
    distance, norm = torch.zeros(()), torch.zeros(())
    for name, (down, up) in known.items():
        mean = torch.einsum("nor,nri->oi", up, down) / len(down)
        own = true[name]
        cross = ((own[1].mT @ mean) * own[0]).sum((-2, -1))
        square = inner(own, own)
        distance, norm = distance + mean.square().sum() - 2 * cross + square, norm + square
    return distance / norm
