"""Keys of a DeepSpeed configuration that `training.deepspeed.config` can and cannot set.

DeepSpeed rejects a contradiction only when training starts, and accepts some without a message, for example an
optimizer of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

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
_ZERO = "zero_optimization"
# Keys that a job may set, as paths -> the type of the value, or the allowed strings. None of them is a path of a file
# or the address of a server. DeepSpeed has hundreds of keys, and new ones with each release: all others are rejected.
ALLOWED: dict[str, type | tuple[str, ...]] = {
    **dict.fromkeys(
        (
            f"{_ZERO}.overlap_comm", f"{_ZERO}.contiguous_gradients", f"{_ZERO}.reduce_scatter",
            f"{_ZERO}.allgather_partitions", f"{_ZERO}.round_robin_gradients", f"{_ZERO}.ignore_unused_parameters",
            f"{_ZERO}.offload_param.pin_memory", "prescale_gradients", "wall_clock_breakdown", "memory_breakdown",
            "flops_profiler.enabled", "flops_profiler.detailed",
        ),
        bool,
    ),
    **dict.fromkeys(
        (
            f"{_ZERO}.reduce_bucket_size", f"{_ZERO}.allgather_bucket_size", f"{_ZERO}.sub_group_size",
            f"{_ZERO}.stage3_max_live_parameters", f"{_ZERO}.stage3_max_reuse_distance",
            f"{_ZERO}.stage3_prefetch_bucket_size", f"{_ZERO}.stage3_param_persistence_threshold",
            f"{_ZERO}.zero_hpz_partition_size", "gradient_predivide_factor", "steps_per_print",
            "flops_profiler.profile_step", "flops_profiler.module_depth", "flops_profiler.top_modules",
        ),
        float,
    ),
    f"{_ZERO}.offload_param.device": ("none", "cpu"),
    "communication_data_type": ("fp32", "fp16", "bf16"),
}  # fmt: skip


def reserved_keys(config: Mapping[str, JsonValue]) -> list[str]:
    """The keys in a configuration that other fields of the job determine, as paths."""
    return [key for key in PLANNED if _has(config, key.split("."))]


def unknown_keys(config: Mapping[str, JsonValue]) -> list[str]:
    """The keys in a configuration that are neither allowed nor determined by other fields, as paths."""
    planned = tuple(f"{key}." for key in PLANNED)
    return [key for key, _ in _leaves(config) if key not in ALLOWED and not f"{key}.".startswith(planned)]


def invalid_values(config: Mapping[str, JsonValue]) -> list[str]:
    """A sentence for each allowed key whose value has another type."""
    return [
        f"{key} must be {_describe(ALLOWED[key])}"
        for key, value in _leaves(config)
        if key in ALLOWED and not _is_valid(value, ALLOWED[key])
    ]


def describe_issues(reserved: list[str], unknown: list[str], invalid: list[str]) -> tuple[str, str]:
    """Rule and remedy for the keys of a configuration that are reserved, unknown or have an invalid value."""
    rules = [f"the plan sets {' and '.join(reserved)}"] if reserved else []
    rules += [f"{' and '.join(unknown)} cannot be set here"] if unknown else []
    fields = dict.fromkeys(PLANNED[key] for key in reserved if PLANNED[key])
    instead = f", and set {', '.join(fields)} instead" if fields else ""
    removed = ", ".join([*reserved, *unknown])
    remedies = [f"remove {removed}{instead}"] if removed else []
    return "; ".join([*rules, *invalid]), "; ".join([*remedies, f"keys that can be set here: {', '.join(ALLOWED)}"])


def _leaves(config: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    for name, value in config.items():
        key = prefix + (repr(name) if "." in name else name)  # a name with a dot is not a path
        if isinstance(value, dict) and value and key not in PLANNED:
            yield from _leaves(value, f"{key}.")
        elif not (isinstance(value, dict) and not value and any(path.startswith(f"{key}.") for path in ALLOWED)):
            yield key, value


def _is_valid(value: JsonValue, kind: type | tuple[str, ...]) -> bool:
    if isinstance(kind, tuple):
        return isinstance(value, str) and value in kind
    if kind is bool:
        return isinstance(value, bool)
    return isinstance(value, int | float) and not isinstance(value, bool) and value >= 0


def _describe(kind: type | tuple[str, ...]) -> str:
    if isinstance(kind, tuple):
        return f"one of {', '.join(kind)}"
    return "true or false" if kind is bool else "a number, 0 or more"


def _has(config: JsonValue | Mapping[str, JsonValue], path: list[str]) -> bool:
    if not isinstance(config, Mapping) or path[0] not in config:
        return False
    return len(path) == 1 or _has(config[path[0]], path[1:])
