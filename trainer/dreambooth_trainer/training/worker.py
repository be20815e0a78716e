"""What Ray Train calls on each worker; light, as the controller imports it as well."""

from __future__ import annotations

import errno
import os
from typing import Any

import ray

from dreambooth_trainer.cluster.hardware import DeviceError, work_device
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.training.messages import FatalWorkerError, LoopConfig

# Not every OSError: that a neighbour hung up is one as well, and then starting anew is just what helps.
NO_USE_TO_RETRY = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def run_worker(config: dict[str, Any]) -> None:
    """Train, with the `LoopConfig` under "loop"."""
    loop: LoopConfig = config["loop"]
    try:
        work_device()
        from dreambooth_trainer.training.loop import train_loop

        train_loop(loop)
    except Exception as error:
        stopped = why_no_retry(error)
        if stopped is not None:
            told: Any = loop.tell(stopped)
            ray.get(told)
        raise


def why_no_retry(error: Exception) -> FatalWorkerError | None:
    """What to report of an error that would come again at once; None for all others."""
    shortage = out_of_memory(error, "training")
    if shortage is not None:
        return FatalWorkerError(str(shortage), shortage)
    if isinstance(error, DeviceError):
        return FatalWorkerError(str(error))
    if isinstance(error, OSError) and error.errno in NO_USE_TO_RETRY:
        first_line = str(error).partition("\n")[0]
        return FatalWorkerError(f"training cannot go on: {os.strerror(error.errno)} ({first_line})")
    return None
