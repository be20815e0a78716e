"""The training loop of a Ray Train worker: steps and checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import ray.train
import torch
from torch import Tensor

from dreambooth_api.errors import TransientError
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import CheckpointMetadata, checkpoint_due, read_metadata
from dreambooth_trainer.training.engine import Engine, open_engine
from dreambooth_trainer.training.messages import LoopConfig, read_records
from dreambooth_trainer.training.module import make_batch
from dreambooth_trainer.training.records import LossRecorder
from dreambooth_trainer.training.saving import CheckpointSaver, any_rank
from dreambooth_trainer.training.stopping import stop_requested


def train_loop(loop: LoopConfig) -> None:
    """Train to the last step of the plan, from the last checkpoint if there is one."""
    plan = loop.plan
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(loop.num_threads)
    torch.manual_seed(plan.spec.training.seed)
    data = load_data(loop.data, "cuda" if plan.gpus_per_worker else "cpu")
    with _last_checkpoint() as checkpoint:
        if checkpoint is not None and read_metadata(checkpoint).step == plan.steps:
            return
        engine = open_engine(plan, world_size, checkpoint)
        recorder = LossRecorder(
            [] if checkpoint is None else read_records(checkpoint),
            world_size=world_size,
            num_micro_batches=world_size * plan.spec.training.gradient_accumulation_steps,
            has_class_images=data.class_images is not None,
        )
    saver, saved_at = CheckpointSaver(engine, rank, loop.report), time.monotonic()
    for step in range(len(recorder.records) + 1, plan.steps + 1):
        rate = engine.learning_rate
        recorder.add(run_step(engine, plan, data, step - 1, rank, world_size), rate)
        # The host waits for the device only here, and the workers for each other.
        if not recorder.due() and not checkpoint_due(step, plan.checkpoint_every_steps, 0) and step < plan.steps:
            continue
        recorder.read()
        if rank == 0:
            loop.report(recorder.records[-1])
        stop_here = stop_requested(rank)
        # The workers' clocks differ: rank 0 decides for all.
        due = rank == 0 and checkpoint_due(step, plan.checkpoint_every_steps, time.monotonic() - saved_at)
        stop, save = any_rank((stop_here, due), engine.device)
        if stop or save or step == plan.steps:
            metadata = CheckpointMetadata(step, world_size, plan.zero_stage, plan.precision)
            if step == plan.steps:
                saver.save_weights(metadata, recorder.records)
            elif stop:
                saver.save_now(metadata, recorder.records)
            else:
                saver.save(metadata, recorder.records)
            saved_at = time.monotonic()
        if stop and step < plan.steps:
            _stop(step, exit_process=stop_here)


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
