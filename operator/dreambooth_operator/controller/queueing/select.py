"""Selection of a job's queue."""

from __future__ import annotations

from dreambooth_api.runpolicy import RunPolicy
from dreambooth_operator.controller.queueing.kueue import KueueQueue
from dreambooth_operator.controller.queueing.protocol import Queue
from dreambooth_operator.controller.queueing.unqueued import Unqueued


def select_queue(policy: RunPolicy) -> Queue:
    """The queue that admits the RayJobs of a job."""
    return KueueQueue(policy.queue_name) if policy.queue_name else Unqueued()
