"""The optimizer's fp32 weights of a fresh start: those of the base, not the rounded ones that DeepSpeed takes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor, nn


def set_masters(originals: Mapping[nn.Parameter, Tensor]) -> None:
    """Set the optimizer's fp32 copy of each parameter that `deepspeed.initialize` cast to a narrower format.

    Every rank calls it, before the first step; each sets the part that it holds.

    Args:
        originals: by parameter, its values before `initialize`, whole.
    """
    for parameter, original in originals.items():
        if parameter.dtype == original.dtype:
            continue
        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, _local_part(parameter, original))
        else:
            safe_set_full_fp32_param(parameter, original)


def _local_part(parameter: nn.Parameter, original: Tensor) -> Tensor:
    """This rank's part of a parameter that ZeRO-3 splits.

    DeepSpeed (0.19.8) pads the last part, and its own `set_full_hp_param` fails on a rank that holds padding.
    """
    split: Any = parameter  # ZeRO-3 adds the attributes
    size = split.ds_tensor.numel()
    part = original.flatten()[split.ds_zero_partition_rank * size :][:size]
    return nn.functional.pad(part, (0, size - part.numel()))
