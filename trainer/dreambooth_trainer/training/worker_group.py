"""Gives back what a start of Ray Train's workers that failed still holds.

Ray Train (2.60, `WorkerGroup._start`) forgets a group whose worker dies when the processes are up and do not train yet:
its placement group stays, and keeps the CPUs or GPUs that the next start waits for, for ever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus
from ray.util import get_current_placement_group, remove_placement_group

from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.training.messages import FatalWorkerError


class WorkerGroupCleanup(WorkerGroupCallback):
    """A callback of Ray Train's controller: before a group starts, nothing is left of the one before.

    It also reports a worker that Ray killed for lack of memory: Ray Train would start the group again, in vain.
    """

    def __init__(self, tell: Callable[[FatalWorkerError], object]) -> None:
        self._last: Any = None
        self._tell = tell

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """The processes are up: note the placement group that they run in."""
        self._last = ray.get(workers[0].execute_async(get_current_placement_group))
        return {}

    def before_worker_group_start(self, worker_group_context: object) -> None:
        """Remove the last placement group, and with it its processes; one that is gone already may be removed again."""
        del worker_group_context
        if self._last is not None:
            remove_placement_group(self._last)
            self._last = None

    def after_worker_group_poll_status(self, worker_group_status: WorkerGroupPollStatus) -> None:
        """Tell the driver of a lack of memory."""
        for error in worker_group_status.errors.values():
            shortage = out_of_memory(error, "training")
            if shortage is not None:
                self._tell(FatalWorkerError(str(shortage), shortage))
