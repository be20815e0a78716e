"""Generates the DeepSpeed configuration of a plan. Pure."""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue

from dreambooth_trainer.planning.memory import bucket_elements
from dreambooth_trainer.planning.plan import Plan


def deepspeed_config(plan: Plan, *, world_size: int, trainable: int, universal: bool) -> dict[str, JsonValue]:
    """The generated configuration, overridden by `training.deepspeed.config` of the job.

    Args:
        trainable: number of trainable parameters.
        universal: load a universal checkpoint, which was saved at another world size.
    """
    training = plan.spec.training
    bucket = bucket_elements(trainable)
    zero: dict[str, JsonValue] = {
        "stage": plan.zero_stage,
        "reduce_bucket_size": bucket,
        "allgather_bucket_size": bucket,
    }
    if training.deepspeed.offload_optimizer:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    config: dict[str, JsonValue] = {
        "train_micro_batch_size_per_gpu": plan.batch_size // world_size // training.gradient_accumulation_steps,
        "gradient_accumulation_steps": training.gradient_accumulation_steps,
        "gradient_clipping": training.max_grad_norm,
        "zero_optimization": zero,
        # bf16 has the range of fp32: the search for infinite gradients would only synchronize the host at every step.
        "bf16": {"enabled": plan.precision == "bf16", "check_grad_overflow": False},
        "fp16": {"enabled": plan.precision == "fp16"},
        # The optimizer is torch.optim.AdamW: DeepSpeed would compile its own optimizer on every new machine.
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 10**9,
    }
    if universal:
        config["checkpoint"] = {"load_universal": True}
    return merge(config, training.deepspeed.config)


def merge(base: dict[str, JsonValue], override: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """A new mapping: a recursive merge, in which values of `override` take precedence."""
    merged = dict(base)
    for key, value in override.items():
        current = merged.get(key)
        if isinstance(value, dict) and isinstance(current, dict):
            merged[key] = merge(current, value)
        else:
            merged[key] = cast("JsonValue", value)
    return merged
