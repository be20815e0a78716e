"""Detection of the hardware of a job's workers, on the nodes where the workers run.

On a Ray cluster, a Ray task with a worker's resources detects the GPU. On a single machine, a subprocess does, so
that the driver does not open a CUDA context.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.fields import quantity_value
from dreambooth_api.job import Cluster

GIB = 2**30
# The rest of a GPU's memory is lost to fragmentation. On a node, Ray kills workers when 95% of the memory is used.
USABLE_SHARE_GPU = 0.92
USABLE_SHARE_CPU = 0.95
# Memory that is not available to training: on each node, Ray's processes and an idle sampling worker; on a single
# machine also the driver, the Ray Train controller and a second sampling worker. Measured with Stable Diffusion 1.5.
SHARED_NODE_BYTES = 1.25 * GIB
SHARED_MACHINE_BYTES = 2.75 * GIB
FURTHER_JOB_BYTES = 1.5 * GIB
"""As SHARED_MACHINE_BYTES, for each further job at the same time: a controller and two sampling workers."""
DRIVER_VERSION_FILE = Path("/proc/driver/nvidia/version")
# Lowest driver for each major version of CUDA, from NVIDIA's table of minor version compatibility.
LOWEST_DRIVER = {"11": "450.80.02", "12": "525.60.13", "13": "580.65.06"}


class DeviceError(TransientError):
    """CUDA does not work on a machine that has a GPU. The job may succeed on another node."""


@dataclass(frozen=True)
class Device:
    """A GPU: model name, memory in bytes, and whether it supports bf16 natively."""

    name: str
    memory_bytes: int
    bf16: bool


@dataclass(frozen=True)
class Hardware:
    """Hardware of each worker of a job.

    Attributes:
        gpus_per_worker: 0 if workers run on CPUs.
        device: name of the GPU model, or "CPU".
        memory_bytes: memory available to one training process, on its GPU or its machine; None if unknown.
        bf16: whether training and sampling use bf16.
        note: a line for the user, or empty.
        processes_per_machine: training processes that share the memory of one machine; 1 on GPUs.
        total_bytes: memory of the machine, if all processes of the job run on one machine without GPUs.
        host_bytes: memory of the machine or pod of each worker with GPUs, outside the GPUs; None if unknown.
    """

    gpus_per_worker: int
    device: str
    memory_bytes: float | None
    bf16: bool
    note: str = ""
    processes_per_machine: int = 1
    total_bytes: float | None = None
    host_bytes: float | None = None

    @property
    def sampling_bytes(self) -> float | None:
        """Memory available to image generation, per GPU or per machine. It does not run during training."""
        return None if self.memory_bytes is None else self.memory_bytes * self.processes_per_machine

    def shared_by(self, jobs: int) -> Hardware:
        """The part of each of several jobs that run at the same time. A GPU is not shared, but its machine is."""
        memory, total, host = self.memory_bytes, self.total_bytes, self.host_bytes
        if memory is not None and not self.gpus_per_worker:
            others = USABLE_SHARE_CPU * (jobs - 1) * FURTHER_JOB_BYTES / self.processes_per_machine
            memory = max(0.0, memory - others) / jobs
        return replace(
            self,
            memory_bytes=memory,
            total_bytes=None if total is None else total / jobs,
            host_bytes=None if host is None else host / jobs,
        )


def cuda_device() -> Device:
    """The GPU of this process. Opens a CUDA context.

    Raises:
        DeviceError: CUDA does not work. The message has the driver's version and the lowest that PyTorch supports.
    """
    import torch

    try:
        torch.cuda.init()
        properties = torch.cuda.get_device_properties(0)
        return Device(properties.name, properties.total_memory, torch.cuda.is_bf16_supported(including_emulation=False))
    except (RuntimeError, AssertionError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DeviceError(
            f"{os.uname().nodename} has a GPU, but CUDA does not work: {reason} (driver found: "
            f"{driver_version() or 'none'}; {_needed_driver(torch.__version__, torch.version.cuda)})"
        ) from error


def _needed_driver(torch_version: str, cuda_version: str | None) -> str:
    """What a build of PyTorch needs.

    Args:
        cuda_version: CUDA version of the build; None for a CPU build.
    """
    if cuda_version is None:
        return f"PyTorch {torch_version} is a build for CPUs: install one for CUDA"
    lowest = LOWEST_DRIVER.get(cuda_version.partition(".")[0])
    needed = f"driver {lowest} or later" if lowest else f"a driver for CUDA {cuda_version}"
    return f"needed: {needed}, for PyTorch {torch_version} with CUDA {cuda_version}"


def driver_version() -> str:
    """Version of this machine's NVIDIA driver, for example 535.54.03; empty without a driver."""
    try:
        line = DRIVER_VERSION_FILE.read_text().splitlines()[0]
    except (OSError, IndexError):
        return ""
    version = re.search(r"\d+\.[\d.]*\d", line)
    return version[0] if version else line.strip()


def reserved_gpus() -> int:
    """Number of GPUs that Ray reserved for this process; 0 outside Ray."""
    import ray

    return len(ray.get_runtime_context().get_accelerator_ids().get("GPU", [])) if ray.is_initialized() else 0


def work_device() -> str:
    """The torch device of this Ray process: "cuda" if Ray reserved a GPU for it, else "cpu".

    Raises:
        DeviceError: a GPU is reserved, but CUDA does not work. There is no silent fallback to the CPU.
    """
    if not reserved_gpus():
        return "cpu"
    cuda_device()
    return "cuda"


def machine_memory() -> int:
    """Memory of this machine in bytes, or the limit of this container if it is lower."""
    from ray._common.utils import get_system_memory

    return get_system_memory()


def free_memory() -> int:
    """Unused memory of this machine or container in bytes, as Ray counts it."""
    from ray._private.utils import estimate_available_memory

    return int(estimate_available_memory())


def query_workers(cluster: Cluster) -> Hardware:
    """Detect the hardware of a job's workers.

    On a Ray cluster, this waits for a worker. Otherwise it counts this machine's GPUs; a job that requests more
    is planned as for a cluster, with `memory_bytes` None.

    Raises:
        DeviceError: there is a GPU, but CUDA does not work.
    """
    return _query_cluster(cluster) if _on_cluster() else _query_machine(cluster)


def _on_cluster() -> bool:
    """Whether Ray is connected to a cluster. A local session (`session.ray_cluster`) is this machine."""
    import ray

    return ray.is_initialized() and bool(os.environ.get("RAY_ADDRESS"))


def check_runnable(hardware: Hardware, cluster: Cluster) -> None:
    """Reject a plan for hardware that this machine does not have.

    Raises:
        UserError: the job requests more GPUs than this machine has.
    """
    if hardware.memory_bytes is None:
        rule = f"this machine does not have {cluster.workers} x {hardware.gpus_per_worker} GPU(s)"
        remedy = "set 0 to run on the CPU, reduce cluster.workers, or set RAY_ADDRESS to a Ray cluster with these GPUs"
        raise UserError(ValidationIssue("spec.cluster.resources.gpu", cluster.resources.gpu, rule, remedy))


def requested_cpus(cluster: Cluster) -> float | None:
    """Number of cores that a job requests for all of its workers; None if it does not set resources.cpu."""
    if cluster.resources.cpu is None:
        return None
    workers = cluster.elastic.max_workers if cluster.elastic else cluster.workers
    return workers * quantity_value(cluster.resources.cpu)


def machine_cores() -> int:
    """CPU cores of this machine or container, as Ray counts them."""
    from ray._private.utils import get_num_cpus

    return int(get_num_cpus())


def check_cores(hardware: Hardware, cluster: Cluster) -> None:
    """Reject more workers than this machine has cores. Ray would wait for more cores forever.

    On a Ray cluster, nodes may still join, so nothing is rejected.

    Raises:
        UserError: with the number of workers and of cores.
    """
    elastic, cores = cluster.elastic, machine_cores()
    workers = elastic.min_workers if elastic else cluster.workers
    if _on_cluster() or hardware.gpus_per_worker or workers <= cores:
        return
    field = "spec.cluster.elastic.minWorkers" if elastic else "spec.cluster.workers"
    rule = f"needs {workers} cores, one for each worker, and this machine has {cores}"
    raise UserError(ValidationIssue(field, workers, rule, f"set {cores}, or set RAY_ADDRESS to a larger Ray cluster"))


def _query_cluster(cluster: Cluster) -> Hardware:
    import ray

    requested = cluster.resources.gpu
    gpus = requested if requested is not None else min(1, int(ray.cluster_resources().get("GPU", 0)))
    if gpus:
        on_gpu = ray.remote(num_gpus=1, num_cpus=0, max_retries=3)
        device: Device = ray.get(on_gpu(cuda_device).remote())
        host_bytes: int = ray.get(on_gpu(machine_memory).remote())
        usable = USABLE_SHARE_GPU * device.memory_bytes
        return Hardware(gpus, device.name, usable, device.bf16, host_bytes=host_bytes)
    memory: int = ray.get(ray.remote(num_cpus=1, max_retries=3)(machine_memory).remote())
    nodes = sum(1 for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU"))
    return cpu_hardware(memory - SHARED_NODE_BYTES, math.ceil(cluster.workers / max(1, nodes)))


def _query_machine(cluster: Cluster) -> Hardware:
    devices, note = local_devices()
    requested = cluster.resources.gpu
    gpus = requested if requested is not None else min(1, len(devices))
    if gpus == 0:
        total = machine_memory()
        return replace(cpu_hardware(total - SHARED_MACHINE_BYTES, cluster.workers, note), total_bytes=total)
    if gpus * cluster.workers > len(devices):
        return Hardware(gpus, "cluster GPU", None, bf16=True)
    smallest = min(devices, key=lambda device: device.memory_bytes)
    memory = USABLE_SHARE_GPU * smallest.memory_bytes
    bf16 = all(device.bf16 for device in devices)
    return Hardware(gpus, smallest.name, memory, bf16, host_bytes=machine_memory() / cluster.workers)


def cpu_hardware(free_bytes: float, processes: int, note: str = "") -> Hardware:
    """Workers on CPUs, `processes` of which share the free memory of each machine."""
    memory = USABLE_SHARE_CPU * free_bytes / processes
    return Hardware(0, "CPU", memory, bf16=False, note=note, processes_per_machine=processes)


def local_devices() -> tuple[list[Device], str]:
    """This machine's GPUs, and a line for the user if a GPU is present but not used.

    Raises:
        DeviceError: the NVIDIA driver is loaded, but CUDA does not work.
    """
    if not any(Path("/dev").glob("nvidia[0-9]*")):
        return [], ""
    if (visible := os.environ.get("CUDA_VISIBLE_DEVICES")) in ("", "-1"):
        return [], f"CUDA_VISIBLE_DEVICES is {visible or 'empty'}: this run uses the CPU."
    if not driver_version():
        return [], "A GPU device file exists, but no NVIDIA driver is loaded: this run uses the CPU."
    probe = subprocess.run(  # noqa: S603 - our own module
        [sys.executable, "-m", __name__], capture_output=True, text=True, check=False
    )
    if probe.returncode:
        raise DeviceError((probe.stderr.strip().splitlines() or ["the GPU probe failed"])[-1])
    return [Device(**device) for device in json.loads(probe.stdout)], ""


def _main() -> None:
    import torch

    try:
        first = cuda_device()
    except DeviceError as error:
        sys.exit(str(error))
    properties = [torch.cuda.get_device_properties(index) for index in range(torch.cuda.device_count())]
    devices = [Device(gpu.name, gpu.total_memory, first.bf16) for gpu in properties]
    print(json.dumps([vars(device) for device in devices]))


if __name__ == "__main__":
    _main()
