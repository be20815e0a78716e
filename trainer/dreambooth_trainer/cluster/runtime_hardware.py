"""Hardware of a job's workers as its runtime describes it, for a plan that is made outside the cluster."""

from __future__ import annotations

from collections.abc import Mapping

from dreambooth_api.fields import quantity_value
from dreambooth_api.runtime import WorkerResources
from dreambooth_trainer.cluster.hardware import GIB, SHARED_NODE_BYTES, USABLE_SHARE_GPU, Hardware, cpu_hardware

# Node labels of NVIDIA's GPU feature discovery.
PRODUCT, MEMORY_MIB = "nvidia.com/gpu.product", "nvidia.com/gpu.memory"
# Memory in GiB as CUDA reports it, rounded down, and whether bf16 is native, by value of the product label. Values with
# a suffix, such as -SHARED or -MIG-3g.40gb, are parts of a GPU and not in this table.
PRODUCTS = {
    "Tesla-T4": (14, False),
    "Tesla-V100-SXM2-16GB": (15, False),
    "Tesla-V100-SXM2-32GB": (31, False),
    "NVIDIA-A10": (22, True),
    "NVIDIA-A10G": (22, True),
    "NVIDIA-L4": (22, True),
    "NVIDIA-A40": (44, True),
    "NVIDIA-L40S": (44, True),
    "NVIDIA-RTX-A6000": (47, True),
    "NVIDIA-A100-SXM4-40GB": (39, True),
    "NVIDIA-A100-PCIE-40GB": (39, True),
    "NVIDIA-A100-SXM4-80GB": (79, True),
    "NVIDIA-A100-80GB-PCIe": (79, True),
    "NVIDIA-H100-80GB-HBM3": (79, True),
    "NVIDIA-H100-PCIe": (79, True),
    "NVIDIA-H200": (139, True),
}


def runtime_hardware(worker: WorkerResources, node_selector: Mapping[str, str]) -> Hardware:
    """Hardware of each worker.

    Args:
        node_selector: labels of the nodes, of the runtime and the job.
    """
    if not worker.gpu:
        return cpu_hardware(quantity_value(worker.memory) - SHARED_NODE_BYTES, processes=1)
    product = node_selector.get(PRODUCT, "")
    memory_gib, bf16 = PRODUCTS.get(product, (None, True))
    memory_bytes = None if memory_gib is None else float(memory_gib * GIB)
    if (label := node_selector.get(MEMORY_MIB, "")).isdecimal():
        memory_bytes = float(label) * 2**20
    if worker.gpu_memory is not None:
        memory_bytes = quantity_value(worker.gpu_memory)
    usable = None if memory_bytes is None else USABLE_SHARE_GPU * memory_bytes
    note, host_bytes = _note(product, usable), quantity_value(worker.memory)
    return Hardware(worker.gpu, product or "GPU", usable, bf16, note, host_bytes=host_bytes)


def _note(product: str, memory_bytes: float | None) -> str:
    assumed = [] if product in PRODUCTS else ["support for bf16 is assumed"]
    if memory_bytes is None:
        assumed.append("memory is not checked; set pods.worker.gpuMemory in the runtime")
    unknown = f"GPU {product!r} is not known" if product else f"the runtime does not select {PRODUCT}"
    return f"{unknown}: {' and '.join(assumed)}." if assumed else ""
