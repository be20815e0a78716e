"""Connection to the Ray cluster of a run: the one at RAY_ADDRESS, or a local one."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Iterator

from dreambooth_api import environment

OBJECT_STORE_BYTES = 256 * 2**20


def has_address() -> bool:
    """Whether RAY_ADDRESS is set, as in the Ray head pod of a job."""
    return bool(os.environ.get("RAY_ADDRESS"))


@contextlib.contextmanager
def ray_cluster() -> Iterator[None]:
    """Connect to RAY_ADDRESS if it is set, else run a local Ray cluster until the block ends."""
    # Ray Train polls its workers every two seconds by default, and a checkpoint waits for the next poll.
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    # Hides the GPUs from processes that reserve none, so that nothing runs on a GPU by accident.
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "1")
    import ray

    if ray.is_initialized():
        yield
        return
    common = {"log_to_driver": bool(os.environ.get(environment.DEBUG)), "logging_level": logging.ERROR}
    if has_address():
        ray.init(**common)
    else:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        ray.init(address="local", include_dashboard=False, object_store_memory=OBJECT_STORE_BYTES, **common)
    logging.getLogger("ray").setLevel(logging.ERROR)
    try:
        yield
    finally:
        ray.shutdown()
