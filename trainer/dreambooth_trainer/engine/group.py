"""Gives back what a start of Ray Train's workers that failed still holds.

Ray Train (2.60, `WorkerGroup._start`) forgets a group whose worker dies when the processes are up and do not train yet:
its placement group stays, and keeps the CPUs or GPUs that the next start waits for, for ever.
"""

from __future__ import annotations

from typing import Any

import ray
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.util import get_current_placement_group, remove_placement_group


class OneGroup(WorkerGroupCallback):
    """A callback of Ray Train's controller: before a group starts, nothing is left of the one before."""

    def __init__(self) -> None:
        self._last: Any = None

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
