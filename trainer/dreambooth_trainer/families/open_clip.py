"""Converts the text encoder of Stable Diffusion 2 from the layout of transformers to that of OpenCLIP.

ComfyUI and AUTOMATIC1111 expect it in single files. diffusers' `convert_open_clip_checkpoint` is the inverse.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch
from torch import Tensor

_TOP = {
    "embeddings.position_embedding.weight": "positional_embedding",
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
_IN_PROJECTION = tuple(f"self_attn.{name}_proj" for name in "qkv")


def to_open_clip(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rename the weights of a text encoder, and concatenate the projections of queries, keys and values.

    Raises:
        ValueError: a weight has no counterpart in OpenCLIP.
    """
    converted: dict[str, Tensor] = {}
    for name, tensor in weights.items():
        if name in _TOP:
            converted[_TOP[name]] = tensor
            continue
        match = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", name)
        if match is None or match[2] not in (*_LAYER, *_IN_PROJECTION):
            raise ValueError(f"text encoder weight {name!r} has no counterpart in OpenCLIP")
        layer, module, kind = match.groups()
        if module in _LAYER:
            converted[f"transformer.resblocks.{layer}.{_LAYER[module]}.{kind}"] = tensor
        elif module == _IN_PROJECTION[0]:
            parts = [weights[f"encoder.layers.{layer}.{part}.{kind}"] for part in _IN_PROJECTION]
            converted[f"transformer.resblocks.{layer}.attn.in_proj_{kind}"] = torch.cat(parts)
    return converted
