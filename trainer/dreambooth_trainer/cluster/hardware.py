"""The hardware that a job's workers have. It is asked where the work runs, never on the driver's machine.

On a cluster a Ray task with a worker's resources answers; on one machine a process of its own does, so that the
driver opens no CUDA context.
"""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.job import Cluster

# Of a GPU, fragmentation takes the rest. Of a machine, Ray kills workers above 95 %.
USABLE_SHARE_GPU = 0.92
USABLE_SHARE_CPU = 0.95
# What else a node holds: Ray's own processes and an idle sampling worker. One machine also holds the driver, the
# controller of Ray Train and a second sampling worker. Measured on Stable Diffusion 1.5 at real size.
SHARED_NODE_BYTES = 1.25 * 2**30
SHARED_MACHINE_BYTES = 2.75 * 2**30
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")


class DeviceError(TransientError):
    """A GPU is reserved for this process and CUDA does not work: another node may be healthy."""


@dataclass(frozen=True)
class Device:
    """One GPU: its name, memory in bytes, and whether it computes in bf16."""

    name: str
    memory_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Hardware:
    """What each worker of a job has.

    Attributes:
        gpus_per_worker: 0 where the work runs on CPUs.
        device: name of the GPU model, or "CPU".
        memory_bytes: that one training process can use, of its GPU or of its machine; None if it is not known here.
        bf16: whether training and sampling use bf16.
        note: one line for the user, or empty.
    """

    gpus_per_worker: int
    device: str
    memory_bytes: float | None
    bf16: bool
    note: str = ""


def cuda_device() -> Device:
    """The GPU of this process. Opens a CUDA context.

    Raises:
        DeviceError: CUDA does not work here; with the driver's version and the one that PyTorch needs.
    """
    import torch

    try:
        torch.cuda.init()
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))
    except (RuntimeError, AssertionError) as error:
        needed = f"CUDA {torch.version.cuda}" if torch.version.cuda else "no CUDA: it is a CPU build"
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceError(
            f"a GPU is reserved on {os.uname().nodename}, but CUDA does not work there: {reason} "
            f"(driver: {driver_version() or 'none'}; PyTorch {torch.__version__} is built for {needed})"
        ) from error


def driver_version() -> str:
    """First line of what the NVIDIA driver of this machine reports, empty without a driver."""
    try:
        return DRIVER_VERSION_FILE.read_text().splitlines()[0].removeprefix("NVRM version: ")
    except (OSError, IndexError):
        return ""


def reserved_gpus() -> int:
    """GPUs that Ray reserved for this process."""
    import ray

    return len(ray.get_runtime_context().get_accelerator_ids().get("GPU", [])) if ray.is_initialized() else 0


def work_device() -> str:
    """The torch device for the work of this Ray process: "cuda" if Ray reserved a GPU for it, else "cpu".

    Raises:
        DeviceError: a GPU is reserved and CUDA does not work; the work never falls back to the CPU silently.
    """
    if not reserved_gpus():
        return "cpu"
    cuda_device()
    return "cuda"


def machine_memory() -> int:
    """Bytes of memory of this machine, or of this container where that is less."""
    from ray._common.utils import get_system_memory

    return get_system_memory()


def query_workers(cluster: Cluster) -> Hardware:
    """The hardware of a job's workers.

    Connected to a Ray cluster, it waits for a worker. On one machine it counts that machine's GPUs; a job that asks
    for more than there are is planned as for a cluster, with `memory_bytes` None.

    Raises:
        DeviceError: there is a GPU and CUDA does not work with it.
    """
    import ray

    return _ask_cluster(cluster) if ray.is_initialized() else _ask_machine(cluster)


def check_runnable(hardware: Hardware, cluster: Cluster) -> None:
    """Refuse to run what was planned for hardware that is not here.

    Raises:
        UserError: the job asks for GPUs that this machine does not have.
    """
    if hardware.memory_bytes is None:
        rule = f"this machine does not have {cluster.workers} x {hardware.gpus_per_worker} GPU(s)"
        remedy = "write 0 to run on the CPU, fewer workers, or set RAY_ADDRESS to a cluster that has them"
        raise UserError(ValidationIssue("spec.cluster.resources.gpu", cluster.resources.gpu, rule, remedy))


def _ask_cluster(cluster: Cluster) -> Hardware:
    import ray

    wanted = cluster.resources.gpu
    gpus = wanted if wanted is not None else min(1, int(ray.cluster_resources().get("GPU", 0)))
    if gpus:
        device: Device = ray.get(ray.remote(num_gpus=1, num_cpus=0, max_retries=3)(cuda_device).remote())
        return Hardware(gpus, device.name, USABLE_SHARE_GPU * device.memory_bytes, device.bf16)
    memory: int = ray.get(ray.remote(num_cpus=1, max_retries=3)(machine_memory).remote())
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    return Hardware(
        0, "CPU", _share(memory - SHARED_NODE_BYTES, math.ceil(cluster.workers / max(1, nodes))), bf16=False
    )


def _ask_machine(cluster: Cluster) -> Hardware:
    devices, note = local_devices()
    wanted = cluster.resources.gpu
    gpus = wanted if wanted is not None else min(1, len(devices))
    if gpus == 0:
        return Hardware(
            0, "CPU", _share(machine_memory() - SHARED_MACHINE_BYTES, cluster.workers), bf16=False, note=note
        )
    if gpus * cluster.workers > len(devices):
        return Hardware(gpus, "GPU of the cluster", None, bf16=True)
    least = min(devices, key=lambda device: device.memory_bytes)
    memory = USABLE_SHARE_GPU * least.memory_bytes
    return Hardware(gpus, least.name, memory, all(device.bf16 for device in devices))


def _share(free_bytes: float, workers: int) -> float:
    """What each of the workers on one machine can use of its free memory."""
    return USABLE_SHARE_CPU * free_bytes / workers


def local_devices() -> tuple[list[Device], str]:
    """This machine's GPUs, and a line for the user where a GPU is there that cannot be used.

    Raises:
        DeviceError: the NVIDIA driver is loaded and CUDA does not work.
    """
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return [], ""
    if os.environ.get("CUDA_VISIBLE_DEVICES") == "":
        return [], "CUDA_VISIBLE_DEVICES is empty: this run uses the CPU."
    if not driver_version():
        return [], "There is a GPU device file but no NVIDIA driver: this run uses the CPU."
    answer = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__], capture_output=True, text=True, check=False
    )
    if answer.returncode:
        raise DeviceError((answer.stderr.strip().splitlines() or ["the GPU probe failed"])[-1])
    return [Device(**device) for device in json.loads(answer.stdout)], ""


def _main() -> None:
    import torch

    try:
        first = cuda_device()
    except DeviceError as error:
        sys.exit(str(error))
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = [Device(one.name, one.total_memory, first.bf16) for one in properties]
    print(json.dumps([vars(device) for device in devices]))


if __name__ == "__main__":
    _main()
