"""Checks that the Ray cluster at RAY_ADDRESS is large enough for a job, because Ray waits for resources forever."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping

from dreambooth_api.errors import TransientError
from dreambooth_api.job import Cluster

# Nodes of a cluster that is starting, or that replace lost ones, join within this time.
JOIN_SECONDS = 60.0
POLL_SECONDS = 1.0
# The monitor of a cluster without an autoscaler reports each node as a node type of its own.
_STATIC_NODE_TYPE = re.compile(r"node_[0-9a-f]{20,}")


def shortage(cluster: Cluster, resources: Mapping[str, float]) -> str:
    """What a Ray cluster lacks to start a job, as a sentence with both numbers; empty if it lacks nothing.

    Args:
        resources: totals of the Ray cluster's nodes.
    """
    elastic = cluster.elastic
    workers = elastic.min_workers if elastic else cluster.workers
    requested = cluster.resources.gpu
    gpus = requested if requested is not None else min(1, int(resources.get("GPU", 0)))
    name, needed = ("GPU", workers * gpus) if gpus else ("CPU", workers)
    available = resources.get(name, 0)
    if needed <= available:
        return ""
    field = "spec.cluster.elastic.minWorkers" if elastic else "spec.cluster.workers"
    each = f" with {gpus} GPU(s) each" if gpus else ""
    return f"{field}: {workers} worker(s){each} need {needed} {name}(s), the Ray cluster has {available:g}"


def wait_for_capacity(cluster: Cluster, note: Callable[[str], None], seconds: float = JOIN_SECONDS) -> None:
    """Wait until the nodes of a job have joined the Ray cluster. Returns at once if the cluster has an autoscaler.

    Args:
        note: shows a line to the user.

    Raises:
        TransientError: the cluster is too small, with the number of GPUs or CPUs that it needs and has.
    """
    import ray

    deadline = time.monotonic() + seconds
    noted = False
    while lack := shortage(cluster, ray.cluster_resources()):
        autoscaled = has_autoscaler()
        if autoscaled:
            note(f"{lack}. Waiting for the cluster's autoscaler.")
            return
        if time.monotonic() > deadline:
            raise TransientError(
                f"{lack}, and no node joined within {seconds:.0f} s; start more nodes, or decrease cluster.workers"
            )
        if not noted:
            note(f"{lack}. Waiting {seconds:.0f} s for more nodes.")
            noted = True
        time.sleep(POLL_SECONDS)


def has_autoscaler() -> bool:
    """Whether the Ray cluster adds nodes on demand; False also if that is not known yet."""
    import ray._raylet as raylet
    from ray._private.ray_constants import DEBUG_AUTOSCALING_STATUS
    from ray.experimental.internal_kv import _internal_kv_get

    # Constants of a compiled module, which pyright cannot read.
    key, namespace = (
        getattr(raylet, name).encode() for name in ("GCS_AUTOSCALER_V2_ENABLED_KEY", "GCS_AUTOSCALER_STATE_NAMESPACE")
    )
    if _internal_kv_get(key, namespace=namespace) == b"1":
        return True
    return adds_nodes(_internal_kv_get(DEBUG_AUTOSCALING_STATUS))


def adds_nodes(status: bytes | None) -> bool:
    """Whether the status of Ray's autoscaler is that of a cluster which adds nodes."""
    report = json.loads(status or b"{}").get("autoscaler_report") or {}
    types = {name for key in ("active_nodes", "idle_nodes") for name in report.get(key) or {}}
    return any(not _STATIC_NODE_TYPE.fullmatch(name) for name in types)
