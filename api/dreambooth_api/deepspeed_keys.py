"""Keys of a DeepSpeed configuration that `training.deepspeed.config` cannot set.

DeepSpeed rejects a contradiction only when training starts, and accepts some without a message, for example an
optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import JsonValue

_BATCH = "training.globalBatchSize"
_PRECISION = "training.precision"
_WORKERS = "cluster.workers"
# Key, as a path in the configuration -> the field of the job that determines it; empty if it is not configurable.
PLANNED: dict[str, str] = {
    "train_batch_size": _BATCH,
    "train_micro_batch_size_per_gpu": _BATCH,
    "gradient_accumulation_steps": "training.gradientAccumulationSteps",
    "gradient_clipping": "training.maxGradNorm",
    "optimizer": "training.learningRate and training.weightDecay",
    "scheduler": "training.lrScheduler",
    "bf16": _PRECISION,
    "bfloat16": _PRECISION,
    "fp16": _PRECISION,
    "amp": _PRECISION,
    "torch_autocast": _PRECISION,
    "data_types": _PRECISION,
    "zero_optimization.stage": "training.deepspeed.stage",
    "zero_optimization.offload_optimizer": "training.deepspeed.offloadOptimizer",
    "zero_optimization.cpu_offload": "training.deepspeed.offloadOptimizer",
    "elasticity": "cluster.elastic",
    "tensor_parallel": _WORKERS,
    "pipeline": _WORKERS,
    "expert_parallel": _WORKERS,
    "sequence_parallel_size": _WORKERS,
    "checkpoint": "",
    "zero_allow_untested_optimizer": "",
    "zero_force_ds_cpu_optimizer": "",
}
# Keys that make a worker write or read files at a path of the user's choice, or contact a server.
FILES = (
    "flops_profiler.output_file",
    "tensorboard",
    "wandb",
    "comet",
    "csv_monitor",
    "autotuning",
    "nebula",
    "data_efficiency",
    "zero_optimization.offload_param.nvme_path",
)


def reserved_keys(config: Mapping[str, JsonValue]) -> list[str]:
    """The keys in a configuration that a job cannot set, as paths."""
    return [key for key in (*PLANNED, *FILES) if _has(config, key.split("."))]


def describe_reserved(keys: list[str]) -> tuple[str, str]:
    """Rule and remedy for reserved keys in a configuration."""
    planned, files = [key for key in keys if key in PLANNED], [key for key in keys if key in FILES]
    rules = [f"the plan sets {' and '.join(planned)}"] if planned else []
    rules += [f"{' and '.join(files)} can write files outside the job's folder"] if files else []
    fields = dict.fromkeys(PLANNED[key] for key in planned if PLANNED[key])
    instead = f", and set {', '.join(fields)} instead" if fields else ""
    allowed = f"; keys that cannot be set here: {', '.join((*PLANNED, *FILES))}"
    return "; ".join(rules), f"remove {', '.join(keys)}{instead}{allowed}"


def _has(config: JsonValue | Mapping[str, JsonValue], path: list[str]) -> bool:
    if not isinstance(config, Mapping) or path[0] not in config:
        return False
    return len(path) == 1 or _has(config[path[0]], path[1:])
