"""What Ray Train calls on each worker; light, as the controller imports it as well."""

from __future__ import annotations

import errno
import os
from typing import Any

import ray

from dreambooth_trainer.engine.entry import LoopConfig, Stopped

# Not every OSError: that a neighbour hung up is one as well, and then starting anew is just what helps.
NO_USE_TO_RETRY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def run_worker(config: dict[str, Any]) -> None:
    """Train, with the `LoopConfig` under "loop"."""
    from dreambooth_trainer.engine.loop import train_loop

    loop: LoopConfig = config["loop"]
    try:
        train_loop(loop)
    except Exception as error:
        message = why_no_retry(error)
        if message is not None:
            told: Any = loop.tell(Stopped(message))
            ray.get(told)
        raise


def why_no_retry(error: Exception) -> str | None:
    """What to tell the user of an error that would come again at once; None for all others."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return (
            "training: the GPU's memory does not suffice; write training.gradientCheckpointing: true, a smaller "
            f"training.batchSize, a higher training.deepspeed.stage or more cluster.workers ({_first_line(error)})"
        )
    if isinstance(error, OSError) and error.errno in NO_USE_TO_RETRY:
        return f"training cannot go on: {os.strerror(error.errno)} ({_first_line(error)})"
    return None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
