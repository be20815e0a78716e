"""Ray clusters with resources that this machine does not have: `python fake_cluster.py CASE` prints a JSON object.

Each case starts its own Ray cluster and therefore runs in its own process. Ray accepts any number of GPUs; that CUDA
does not work with them is real.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import psutil


def two_nodes_with_gpus() -> dict[str, Any]:
    """A head node without CPUs and two nodes with four GPUs each: detected hardware, and the size of the pool."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from dreambooth_api.job import Cluster, Resources
    from dreambooth_trainer.cluster import hardware
    from dreambooth_trainer.cluster.pool import WorkerPool

    def a100() -> hardware.Device:
        gpus = len(ray.get_runtime_context().get_accelerator_ids()["GPU"])
        assert gpus == 1, "the probe must reserve a GPU"
        assert ray.get_runtime_context().get_node_id() != head, "the head node has no GPU"
        return hardware.Device("A100", 80 * 2**30, bf16=True)

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    nodes.add_node(num_cpus=1, num_gpus=4)
    nodes.add_node(num_cpus=1, num_gpus=4)
    os.environ["RAY_ADDRESS"] = nodes.address
    ray.init(log_to_driver=False)
    head = ray.get_runtime_context().get_node_id()
    result: dict[str, Any] = {}
    try:
        hardware.query_workers(Cluster(workers=2, resources=Resources(gpu=4)))
    except hardware.DeviceError as error:
        result["without CUDA"] = str(error)
    hardware.cuda_device = a100
    for gpu in (4, None):
        found = hardware.query_workers(Cluster(workers=2, resources=Resources(gpu=gpu)))
        result[f"gpu {gpu}"] = [found.gpus_per_worker, found.device, found.memory_bytes, found.bf16]
        assert found.host_bytes == hardware.machine_memory()
    result["cpu"] = hardware.query_workers(Cluster(workers=2, resources=Resources(gpu=0))).gpus_per_worker
    result["pool of 6"] = len(WorkerPool(6, gpu=True).start())
    return result


def broken_gpu() -> dict[str, Any]:
    """Errors of the pool and of training in processes for which Ray reserved a GPU, but CUDA does not work."""
    import ray

    from dreambooth_trainer.cluster.hardware import work_device
    from dreambooth_trainer.cluster.pool import WorkerPool
    from dreambooth_trainer.training.messages import FatalWorkerError
    from dreambooth_trainer.training.worker import run_worker

    ray.init(address="local", num_gpus=2, include_dashboard=False, log_to_driver=False)
    result: dict[str, Any] = {"cpu": WorkerPool(1).call(work_device)}
    pool = WorkerPool(2, gpu=True)
    try:
        result["pool"] = pool.call(work_device)
    except Exception as error:
        result["pool"] = str(error).splitlines()[-1]

    def train() -> str:
        reported: list[FatalWorkerError] = []

        class Loop:
            def report(self, message: FatalWorkerError) -> Any:
                reported.append(message)
                return ray.put(None)

        try:
            run_worker({"loop": Loop()})
        except Exception:
            return reported[0].message
        return "trained"

    pool.stop()
    result["training"] = ray.get(ray.remote(num_gpus=1)(train).remote())
    return result


def exhaust_memory(attempts: Path) -> int:
    """Allocate memory until the process is killed. Each attempt adds a line to a file."""
    with attempts.open("a") as file:
        file.write("attempt\n")
    held = []
    while True:
        held.append(b"x" * 2**28)
        time.sleep(0.02)


def out_of_memory() -> dict[str, Any]:
    """Errors that a run raises when Ray kills its workers because of memory pressure, and the number of attempts."""
    memory = psutil.virtual_memory()
    os.environ["RAY_memory_usage_threshold"] = str((memory.total - memory.available + 5 * 2**30) / memory.total)  # noqa: SIM112 - Ray's name
    os.environ["RAY_memory_monitor_refresh_ms"] = "50"  # noqa: SIM112 - Ray's name
    import ray
    from test_training import make_plan

    from dreambooth_trainer.cluster.memory_errors import InsufficientMemoryError, out_of_memory
    from dreambooth_trainer.cluster.pool import WorkerPool
    from dreambooth_trainer.cluster.session import ray_cluster
    from dreambooth_trainer.phases import train
    from dreambooth_trainer.sprites import WEIGHTS
    from dreambooth_trainer.store.folder import JobFolder

    folder = Path(sys.argv[2])
    result: dict[str, Any] = {}
    with ray_cluster():
        try:
            WorkerPool(1).call(exhaust_memory, folder / "pool")
        except InsufficientMemoryError as error:
            result["pool"] = [str(error), len((folder / "pool").read_text().split())]
        plan = make_plan(WEIGHTS)
        progress_actor: Any = ray.remote(num_cpus=0)(train.ProgressActor).remote()
        trainer = train.build_trainer(
            plan, JobFolder(folder), "key", train.partial(train.report_to, progress_actor), cores=1
        )
        trainer.train_loop_per_worker = lambda config: exhaust_memory(folder / "training")
        try:
            train._fit(trainer, progress_actor, lambda record, saved: None, lambda: None)
        except Exception as caught:
            error = caught if isinstance(caught, InsufficientMemoryError) else out_of_memory(caught, "training")
            result["training"] = [str(error), len((folder / "training").read_text().split())]
    return result


def node_of_call(seconds: float) -> str:
    import ray

    time.sleep(seconds)
    return ray.get_runtime_context().get_node_id()


def elastic_cluster() -> dict[str, Any]:
    """Nodes that run the calls of a pool while one node joins and the first one is lost."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from dreambooth_trainer.cluster.pool import WorkerPool

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    first, second = nodes.add_node(num_cpus=1, num_gpus=1), None
    ray.init(address=nodes.address, log_to_driver=False)
    ran: list[str] = []
    calls = ((0.5,) for _ in range(30))
    for node in WorkerPool(2, gpu=True).map(node_of_call, calls, calls_per_worker=2):
        ran.append(node)
        if len(ran) == 4:
            second = nodes.add_node(num_cpus=1, num_gpus=1)
        if second is not None and ran.count(second.node_id) == 4 and first is not None:
            nodes.remove_node(first, allow_graceful=False)
            first = None
    return {"calls": len(ran), "nodes": [ran.count(node) for node in dict.fromkeys(ran)], "first lost": first is None}


def too_small() -> dict[str, Any]:
    """The error of a job that needs more GPUs than a static cluster has, and whether an autoscaler was found."""
    import ray
    from ray.cluster_utils import Cluster as Nodes

    from dreambooth_api.errors import TransientError
    from dreambooth_api.job import Cluster, Resources
    from dreambooth_trainer.cluster.capacity import has_autoscaler, wait_for_capacity

    nodes = Nodes(initialize_head=True, head_node_args={"num_cpus": 0, "num_gpus": 0})
    nodes.add_node(num_cpus=1, num_gpus=4)
    ray.init(address=nodes.address, log_to_driver=False)
    try:
        wait_for_capacity(Cluster(workers=2, resources=Resources(gpu=4)), lambda line: None, seconds=10)
    except TransientError as error:
        return {"error": str(error), "autoscaler": has_autoscaler()}
    return {"error": "", "autoscaler": has_autoscaler()}


if __name__ == "__main__":
    cases = (two_nodes_with_gpus, broken_gpu, elastic_cluster, out_of_memory, too_small)
    result = {case.__name__: case for case in cases}[sys.argv[1]]()
    print(json.dumps(result), flush=True)
