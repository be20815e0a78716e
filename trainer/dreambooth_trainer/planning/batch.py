"""Steps and batch size of a job, which must be possible to split among its workers."""

from __future__ import annotations

import math

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec
from dreambooth_api.training import MAX_VALIDATIONS, too_many_validations


def num_steps(spec: JobSpec, default: int) -> int:
    """The number of steps.

    Raises:
        UserError: an interval does not fit it. The API does not check this, because it does not know the default.
    """
    training = spec.training
    steps = training.steps or default
    counts = {"warmupSteps": training.warmup_steps, "checkpointEverySteps": training.checkpoint_every_steps}
    rule = f"exceeds training.steps, which {'is' if training.steps else 'defaults to'} {steps}"
    issues = [
        ValidationIssue(f"spec.training.{field}", count, rule, f"decrease {field}, or set training.steps")
        for field, count in counts.items()
        if count is not None and count > steps
    ]
    if training.validation and steps > MAX_VALIDATIONS * (interval := training.validation.every_steps):
        rule, remedy = too_many_validations(steps)
        issues.append(ValidationIssue("spec.training.validation.everySteps", interval, rule, remedy))
    if issues:
        raise UserError(issues)
    return steps


def global_batch_size(spec: JobSpec, gpus_per_worker: int, default: int, steps: int, rate: float) -> int:
    """The global batch size. It does not depend on the number of workers, because it affects the result.

    Raises:
        UserError: it cannot be split evenly. The remedy is a batch size that can be split, with steps and learning rate
            that keep the number of samples.
    """
    elastic, accumulation = spec.cluster.elastic, spec.training.gradient_accumulation_steps
    per_worker = max(1, gpus_per_worker)
    counts = range(elastic.min_workers, elastic.max_workers + 1) if elastic else [spec.cluster.workers]
    parts = math.lcm(*counts) * per_worker * accumulation
    batch = spec.training.global_batch_size or default
    if batch % parts == 0:
        return batch
    workers = (
        f"{counts[0]} worker(s)" if len(counts) == 1 else f"any number of workers from {counts[0]} to {counts[-1]}"
    )
    gpus = f" x {per_worker} GPUs" if per_worker > 1 else ""
    rule = f"cannot be split evenly across {workers}{gpus} x {accumulation} accumulation step(s)"
    larger = math.ceil(batch / parts) * parts
    growth = larger / batch
    # For Adam, the learning rate scales with the square root of the batch size (Malladi et al. 2022, section 5).
    remedy = (
        f"set a multiple of {parts}, for example with the same number of samples: training.globalBatchSize: {larger}, "
        f"training.steps: {max(1, round(steps / growth))}, training.learningRate: {rate * math.sqrt(growth):.2g}; or "
        "use fewer workers"
    )
    prefix = "" if spec.training.global_batch_size else "the default "
    raise UserError(ValidationIssue("spec.training.globalBatchSize", batch, f"{prefix}{rule}", remedy))
