"""Autocast on PyTorch's meta device, which `torch.autocast` does not support."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._pytree import tree_map

# The operators of autocast's lists (PyTorch 2.13, ATen/autocast_mode.h) that models call, by their names in
# torch.nn.functional. CUDA computes norms in fp32.
LOW_PRECISION = ("conv2d", "linear")
FP32 = ("interpolate",)
FP32_ON_CUDA = ("group_norm", "layer_norm", "softmax")


class MetaAutocast:
    """Casts arguments of operators as autocast does.

    Args:
        dtype: the lower precision.
        gpu: whether to use CUDA's list of operators in fp32, or that of CPUs.
    """

    def __init__(self, dtype: torch.dtype, *, gpu: bool) -> None:
        self._dtype, self._in_forward = dtype, True
        self._fp32 = (*FP32, *FP32_ON_CUDA) if gpu else FP32
        self._casts: dict[Tensor, Tensor] = {}

    @contextlib.contextmanager
    def enabled(self) -> Iterator[None]:
        """Replace the operators. A torch function mode would not be active when checkpointing recomputes a block."""
        casts = {**dict.fromkeys(LOW_PRECISION, self._to_low), **dict.fromkeys(self._fp32, _to_fp32)}
        originals = {name: getattr(functional, name) for name in casts}
        for name, cast in casts.items():
            setattr(functional, name, _with_casts(originals[name], cast))
        try:
            yield
        finally:
            for name, original in originals.items():
                setattr(functional, name, original)

    def end_forward(self) -> None:
        """Free the casts of trained weights, which autocast keeps until the forward pass ends."""
        self._in_forward = False
        self._casts.clear()

    def _to_low(self, value: Any) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == self._dtype:
            return value
        if not (self._in_forward and value.is_leaf and value.requires_grad):
            return value.to(self._dtype)
        if value not in self._casts:
            self._casts[value] = value.to(self._dtype)
        return self._casts[value]


def _to_fp32(value: Any) -> Any:
    is_low = isinstance(value, Tensor) and value.dtype in (torch.bfloat16, torch.float16)
    return value.float() if is_low else value


def _with_casts(operator: Callable[..., Any], cast: Callable[[Any], Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        args, kwargs = tree_map(cast, (args, kwargs))
        return operator(*args, **kwargs)

    return call
