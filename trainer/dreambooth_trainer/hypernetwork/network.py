"""The network that predicts adapters from images, after HyperDreamBooth (Ruiz et al. 2024).

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
"""Directions in which A and B of a layer can differ between subjects."""


class AdapterNetwork(nn.Module):
    """A learned query per layer attends to the others with the features added, and two heads give A and B.

    A layer's A is a learned one plus r combinations of `BASIS` learned directions, and so is its B. The directions
    begin at zero: an untrained network predicts the same adapter for all subjects.
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
        self.common_down = nn.ParameterList(torch.zeros(self.rank, inputs) for inputs, _ in sizes)
        self.common_up = nn.ParameterList(torch.zeros(outputs, self.rank) for _, outputs in sizes)
        self.down = nn.ParameterList(torch.zeros(BASIS, inputs) for inputs, _ in sizes)
        self.up = nn.ParameterList(torch.zeros(outputs, BASIS) for _, outputs in sizes)

    def start_from(self, adapter: Mapping[str, tuple[Tensor, Tensor]], features: Tensor) -> None:
        """Predict A [r, i] and B [o, r] of each layer for all subjects.

        Args:
            features: of single images, [images, D], for the normalization.
        """
        self.offset.data.copy_(features.mean(0))
        self.scale.data.copy_(features.std(0, correction=0).clamp(min=1e-3))
        for index, name in enumerate(self.names):
            down, up = adapter[name]
            self.common_down[index].data.copy_(down)
            self.common_up[index].data.copy_(up)

    def forward(self, features: Tensor) -> dict[str, tuple[Tensor, Tensor]]:
        """Features [N, D], each the mean over the images of a subject -> their adapters."""
        embedded = self.embed((features - self.offset) / self.scale)
        tokens = self.blocks(self.queries + embedded[:, None])  # [N, L, WIDTH]
        rows = self.down_head(tokens).unflatten(-1, (self.rank, BASIS))  # [N, L, r, BASIS]
        columns = self.up_head(tokens).unflatten(-1, (BASIS, self.rank))  # [N, L, BASIS, r]
        return {
            name: (
                self.common_down[index] + rows[:, index] @ self.down[index],
                self.common_up[index] + self.up[index] @ columns[:, index],
            )
            for index, name in enumerate(self.names)
        }
