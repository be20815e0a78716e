"""Entry point of Ray Train on each worker. Imports no heavy libraries, because the controller imports it too."""

from __future__ import annotations

import errno
import os
from typing import Any

import ray

from dreambooth_trainer.cluster.hardware import DeviceError, work_device
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.training.messages import FatalWorkerError, LoopConfig, ReportCallback

# Not every OSError: a restart helps if the connection to another worker was lost.
FATAL_ERRNOS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM, errno.EFBIG}


def run_worker(config: dict[str, Any]) -> None:
    """Run the training loop.

    Args:
        config: the `train_loop_config` of Ray Train, with a `LoopConfig` under "loop".
    """
    loop: LoopConfig = config["loop"]
    try:
        work_device()
        from dreambooth_trainer.training.loop import train_loop

        train_loop(loop)
    except Exception as error:
        report_fatal_error(loop.report, error)
        raise


def report_fatal_error(report: ReportCallback, error: Exception) -> None:
    """Report an error that would occur again after a restart, and wait until the report has arrived."""
    fatal = fatal_error(error)
    if fatal is not None:
        sent: Any = report(fatal)
        ray.get(sent)


def fatal_error(error: Exception) -> FatalWorkerError | None:
    """The message for an error that would occur again after a restart; None for other errors."""
    memory_error = out_of_memory(error, "training")
    if memory_error is not None:
        return FatalWorkerError(str(memory_error), memory_error)
    if isinstance(error, DeviceError):
        return FatalWorkerError(str(error))
    if isinstance(error, OSError) and error.errno in FATAL_ERRNOS:
        first_line = str(error).partition("\n")[0]
        return FatalWorkerError(f"training cannot continue: {os.strerror(error.errno)} ({first_line})")
    return None
