"""Loading of checkpoints without code: pickles may contain tensors, plain containers and a few classes of DeepSpeed.

As a program, it runs DeepSpeed's conversion to a universal checkpoint with the same restriction.
"""

from __future__ import annotations

import contextlib
import os
import pickle
import sys
from collections.abc import Iterator

import torch

# torch.load then ignores weights_only=False, which DeepSpeed passes.
VARIABLE = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"


def deepspeed_classes() -> list[type]:
    """The classes in checkpoints of DeepSpeed. They only hold values."""
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    return [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]


@contextlib.contextmanager
def only_weights() -> Iterator[None]:
    """In this block, `torch.load` raises an UnpicklingError for a file with any other class, and runs no code of it."""
    before = os.environ.get(VARIABLE)
    os.environ[VARIABLE] = "1"
    try:
        with torch.serialization.safe_globals(deepspeed_classes()):  # pyright: ignore[reportArgumentType]
            yield
    finally:
        if before is None:
            del os.environ[VARIABLE]
        else:
            os.environ[VARIABLE] = before


if __name__ == "__main__":
    from deepspeed.checkpoint.ds_to_universal import main, parse_arguments

    try:
        with only_weights():
            main(parse_arguments())
    except pickle.UnpicklingError:
        sys.exit("a file contains objects that could run code, not only tensors")
