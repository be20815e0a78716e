"""Notices that a worker will be stopped: SIGTERM, or Ray's notice that the worker's node is being drained.

The training loop then saves a checkpoint. Ray gives both to the main thread of the process; the loop runs in another.
"""

from __future__ import annotations

import signal
import threading

_terminated = threading.Event()


def handle_sigterm() -> None:
    """Replace Ray's handler of SIGTERM, which exits at once. Must run on the main thread of a training worker."""
    signal.signal(signal.SIGTERM, lambda *_: _terminated.set())


def stop_requested(rank: int) -> bool:
    """Whether this worker will be stopped soon.

    Ray's public `get_preemption_info` synchronizes all workers at every call, so its local state is read instead.
    """
    from ray.train.v2._internal.execution.context import get_train_context

    notice = get_train_context().preemption_context.preemption_info
    return _terminated.is_set() or (notice is not None and rank in notice.preempted_ranks)
