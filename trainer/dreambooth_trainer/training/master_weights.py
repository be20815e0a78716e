"""Sets the optimizer's fp32 master weights to those of the base model.

DeepSpeed initializes them from the weights after the cast to bf16, which are rounded.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from deepspeed.utils import safe_set_full_fp32_param, safe_set_local_fp32_param
from torch import Tensor, nn


def set_master_weights(originals: Mapping[nn.Parameter, Tensor]) -> None:
    """Set the fp32 master weights of each parameter that `deepspeed.initialize` cast to another number format.

    Every rank must call this before the first step; each rank sets its own partition.

    Args:
        originals: the values of each parameter before `initialize`, not partitioned.
    """
    for parameter, original in originals.items():
        if parameter.dtype == original.dtype:
            continue
        if hasattr(parameter, "ds_id"):
            safe_set_local_fp32_param(parameter, _local_partition(parameter, original))
        else:
            safe_set_full_fp32_param(parameter, original)


def _local_partition(parameter: nn.Parameter, original: Tensor) -> Tensor:
    """This rank's partition of a parameter under ZeRO-3.

    DeepSpeed (0.19.8) pads the last partition, and its own `set_full_hp_param` fails on a rank with padding.
    """
    partitioned: Any = parameter  # ZeRO-3 adds the attributes
    size = partitioned.ds_tensor.numel()
    partition = original.flatten()[partitioned.ds_zero_partition_rank * size :][:size]
    return nn.functional.pad(partition, (0, size - partition.numel()))
