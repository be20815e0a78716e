"""Callbacks of Ray Train's controller.

They prepare the processes of a worker group, and release the resources of one that failed to start.

Ray Train (2.60, `WorkerGroup._start`) leaks the placement group if a worker dies after the processes have started and
before they train. Its CPUs or GPUs stay reserved, and the next worker group waits for them forever.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ray
import ray.train
from ray.train.v2._internal.execution.callback import WorkerGroupCallback
from ray.train.v2._internal.execution.worker_group.poll import WorkerGroupPollStatus
from ray.util import get_current_placement_group, remove_placement_group

from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.cluster.oom_kills import oom_kills
from dreambooth_trainer.training.messages import CheckpointSaved, FatalWorkerError
from dreambooth_trainer.training.stopping import handle_sigterm


class WorkerGroupCleanup(WorkerGroupCallback):
    """A callback of Ray Train's controller that removes the placement group of the previous worker group.

    It also sets the workers' signal handlers. It reports a worker that Ray or the kernel killed for lack of memory,
    because a restart would fail again. The controller runs on the driver's node.

    Args:
        report: called with a fatal error.
    """

    def __init__(self, report: Callable[[FatalWorkerError], object]) -> None:
        self._placement_group: Any = None
        self._report = report
        self._kills_before = oom_kills()

    def before_init_train_context(self, workers: list[Any]) -> dict[str, list[Any]]:
        """Remember the placement group of the processes that have started, and let SIGTERM request a checkpoint."""
        self._placement_group = ray.get(workers[0].execute_async(get_current_placement_group))
        # Only the main thread can set a signal handler, and the training loop runs in another.
        ray.get([worker.execute_async(handle_sigterm) for worker in workers])
        return {}

    def before_worker_group_start(self, worker_group_context: object) -> None:
        """Remove the previous placement group with its processes. Removing it twice is allowed."""
        del worker_group_context
        if self._placement_group is not None:
            remove_placement_group(self._placement_group)
            self._placement_group = None

    def after_worker_group_poll_status(self, worker_group_status: WorkerGroupPollStatus) -> None:
        """Report workers that ran out of memory."""
        for error in worker_group_status.errors.values():
            memory_error = out_of_memory(error, "training", kills_before=self._kills_before)
            if memory_error is not None:
                self._report(FatalWorkerError(str(memory_error), memory_error))


class SavedStepReporter(ray.train.UserCallback):
    """A callback of Ray Train's controller that reports the step of each registered checkpoint.

    Args:
        report: called with the step.
    """

    def __init__(self, report: Callable[[CheckpointSaved], object]) -> None:
        self._report = report

    def after_report(
        self, run_context: Any, metrics: list[dict[str, Any]], checkpoint: ray.train.Checkpoint | None
    ) -> None:
        """Report the step, which is a metric of the checkpoint."""
        del run_context
        if checkpoint is not None:
            self._report(CheckpointSaved(metrics[0]["step"]))
