"""Ray Train's trainer in a local Ray session."""

from __future__ import annotations

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.train.v2._internal.execution.callback import RayTrainCallback

# The cleaner removes the placement group of a controller that has died. It asks the dashboard whether the controller
# lives. A local session has no dashboard, so the end of each training waits for the answer, up to 12 s. The placement
# group of a controller that has died is removed with the session, which ends with this process.
# The other one starts a process for Ray Data, which is not used.
UNUSED = (PlacementGroupCleanerCallback, DatasetsCallback)


class LocalTrainer(TorchTrainer):
    """A `TorchTrainer` without the processes that only a cluster needs."""

    def _create_default_callbacks(self) -> list[RayTrainCallback]:
        return [callback for callback in super()._create_default_callbacks() if not isinstance(callback, UNUSED)]
