"""Number formats of a plan: of the forward pass, and of the optimizer's state."""

from __future__ import annotations

import importlib.util

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_trainer.planning.plan import Plan

OPTIMIZER_FIELD = "spec.training.optimizer"


def default_precision(*, gpu: bool, bf16: bool) -> str:
    """bf16 on GPUs that have it, fp16 on older ones, fp32 on CPUs."""
    if not gpu:
        return "fp32"
    return "bf16" if bf16 else "fp16"


def check_number_formats(plan: Plan) -> None:
    """Reject number formats that the workers do not support.

    Raises:
        UserError: with all issues.
    """
    training, gpus = plan.spec.training, plan.gpus_per_worker
    issues: list[ValidationIssue] = []
    if plan.precision == "fp16" and not gpus:
        issues.append(ValidationIssue("spec.training.precision", "fp16", "needs GPUs", "set fp32, or use GPUs"))
    if training.optimizer == "AdamW8bit":
        if not gpus:
            issues.append(ValidationIssue(OPTIMIZER_FIELD, "AdamW8bit", "needs GPUs", "set AdamW, or use GPUs"))
        if plan.needs_deepspeed(plan.world_sizes[1]):
            rule = "needs a single training process without DeepSpeed, which partitions a 32-bit state instead"
            remedy = "set AdamW, or one worker with one GPU and no deepspeed settings"
            issues.append(ValidationIssue(OPTIMIZER_FIELD, "AdamW8bit", rule, remedy))
    if issues:
        raise UserError(issues)


def check_packages(plan: Plan) -> None:
    """Reject a plan that needs a package which is not installed here.

    Raises:
        UserError: with the extras that install what is missing.
    """
    issues: list[ValidationIssue] = []
    if plan.spec.training.optimizer == "AdamW8bit" and importlib.util.find_spec("bitsandbytes") is None:
        rule, remedy = "needs bitsandbytes, which is not installed", "install dreambooth-operator[bitsandbytes]"
        issues.append(ValidationIssue(OPTIMIZER_FIELD, "AdamW8bit", rule, remedy))
    for index, name in enumerate(plan.spec.training.trackers):
        if importlib.util.find_spec(name) is None:
            rule, remedy = f"needs {name}, which is not installed", f"install dreambooth-operator[{name}]"
            issues.append(ValidationIssue(f"spec.training.reportTo[{index}]", name, rule, remedy))
    if issues:
        raise UserError(issues)
