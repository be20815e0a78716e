"""The training loop of a Ray Train worker: steps and checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import ray.train
import torch
from torch import Tensor

from dreambooth_api.errors import TransientError
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.sampling.validation_set import is_due
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import WEIGHTS_FILE, CheckpointMetadata, checkpoint_due
from dreambooth_trainer.training.engine import Engine, open_engine
from dreambooth_trainer.training.messages import History, LoopConfig, read_records
from dreambooth_trainer.training.module import make_batch
from dreambooth_trainer.training.records import LossRecorder
from dreambooth_trainer.training.saving import CheckpointSaver, any_rank, save_candidate
from dreambooth_trainer.training.stopping import stop_requested
from dreambooth_trainer.training.validation import Validator


def train_loop(loop: LoopConfig) -> None:
    """Train to the last step of the plan, from the last checkpoint if there is one."""
    plan = loop.plan
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(loop.num_threads)
    torch.manual_seed(plan.spec.training.seed)
    data = load_data(loop.data, "cuda" if plan.gpus_per_worker else "cpu")
    with _last_checkpoint() as checkpoint:
        if checkpoint is not None and (checkpoint / WEIGHTS_FILE).exists():
            return  # the training has ended
        engine = open_engine(plan, world_size, checkpoint, loop.initial_adapter)
        recorder = LossRecorder(
            [] if checkpoint is None else read_records(checkpoint),
            world_size=world_size,
            num_micro_batches=world_size * plan.spec.training.gradient_accumulation_steps,
            has_prior_loss=plan.spec.prior_loss_weight is not None,
        )
    saver, saved_at, reported = CheckpointSaver(engine, rank, loop.report), time.monotonic(), 0
    validate = _open_validation(loop, engine, rank, world_size)
    start = len(recorder.records)
    # The base model, or a validation that was interrupted. After a step more, it would not be completed.
    if is_due(plan, start) and not validate(start):
        _stop(start, exit_process=stop_requested(rank))
    metadata = CheckpointMetadata(start, world_size, plan.zero_stage, plan.precision)
    if start == plan.steps:
        saver.save_weights(metadata, recorder.records)
    for step in range(start + 1, plan.steps + 1):
        rate = engine.learning_rate
        recorder.add(run_step(engine, plan, data, step - 1, rank, world_size), rate)
        # The host waits for the device only here, and the workers for each other.
        validates = is_due(plan, step)
        needed = step == plan.steps or validates or checkpoint_due(step, plan.checkpoint_every_steps, 0)
        if not needed and not recorder.due():
            continue
        recorder.read()
        if rank == 0:
            loop.report(recorder.records[-1])
            if plan.spec.training.trackers and not plan.stage:
                loop.report(History(tuple(recorder.records[reported:])))
                reported = len(recorder.records)
        # Before the checkpoint of this step, after which the images would not be generated again.
        complete = not validates or validate(step)
        stop_here = stop_requested(rank)
        # The workers' clocks differ: rank 0 decides for all.
        due = rank == 0 and checkpoint_due(step, plan.checkpoint_every_steps, time.monotonic() - saved_at)
        flags = stop_here or not complete, due, _ends(loop, step, rank, complete=complete)
        stop, save, ends = any_rank(flags, engine.device)
        if stop or save or ends:
            write = saver.save_weights if ends else saver.save_now if stop else saver.save
            write(replace(metadata, step=step), recorder.records)
            saved_at = time.monotonic()
        if ends:
            return
        if stop:
            _stop(step, exit_process=stop_here)


def _open_validation(loop: LoopConfig, engine: Engine, rank: int, world_size: int) -> Callable[[int], bool]:
    """A function that validates a step that is due. All ranks must call it after the same step.

    It returns False if a worker will be stopped soon and the validation is not complete, the same on all ranks.
    """
    validations, candidates = loop.validations, loop.candidates
    if validations is None:
        return lambda step: True
    agree = partial(any_rank, device=engine.device)
    validator = Validator(loop.plan, engine, validations, rank, world_size, agree)

    def validate(step: int) -> bool:
        complete = validator.run(step, partial(stop_requested, rank))
        if complete and step and candidates is not None:
            save_candidate(engine, candidates, step, rank, agree)
        return complete

    return validate


def _ends(loop: LoopConfig, step: int, rank: int, *, complete: bool) -> bool:
    """Whether the training ends with this step, after its validation."""
    if loop.candidates is None:
        return step == loop.plan.steps
    # The weights that are published may depend on the last validation. If it is not complete, the training continues
    # from a checkpoint of this step.
    return (step == loop.plan.steps and complete) or (rank == 0 and loop.candidates.stop_requested())


def _stop(step: int, *, exit_process: bool) -> None:
    """End this worker, so that Ray Train restarts all workers from the checkpoint of this step.

    Args:
        exit_process: on a node that is drained, Ray counts the end of the process as a preemption, not as a failure.
    """
    # `report` returns before the controller has registered the checkpoint.
    ray.train.get_all_reported_checkpoints(ray.train.CheckpointConsistencyMode.COMMITTED)
    if exit_process:
        os._exit(1)
    raise TransientError(f"a worker was stopped; step {step} is saved")


def run_step(engine: Engine, plan: Plan, data: TrainingData, step: int, rank: int, world_size: int) -> Tensor:
    """Run one optimizer step over all its micro-batches.

    Returns:
        This worker's sums of the losses over its micro-batches, on the device.
    """
    accumulation, seed = plan.spec.training.gradient_accumulation_steps, plan.spec.training.seed
    instance, prior = data.instance_images, data.class_images
    samplers = (
        DeterministicSampler(instance.indices, plan.batch_size, 4 * seed, plan.variants_per_image),
        None if prior is None else DeterministicSampler(prior.indices, plan.batch_size, 4 * seed + 2),
    )
    return engine.step(
        make_batch(engine.module.stage, data, samplers, step, micro_step * world_size + rank, world_size * accumulation)
        for micro_step in range(accumulation)
    )


@contextlib.contextmanager
def _last_checkpoint() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)
