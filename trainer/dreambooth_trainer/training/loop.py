"""The training loop of a Ray Train worker: DeepSpeed steps and checkpoints."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray.train
import torch
from diffusers.optimization import get_scheduler
from pydantic.alias_generators import to_snake

from dreambooth_api.errors import TransientError
from dreambooth_trainer.families.base import Family
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import (
    TAG,
    CheckpointMetadata,
    checkpoint_due,
    convert_to_universal,
    read_metadata,
)
from dreambooth_trainer.training.deepspeed_config import deepspeed_config
from dreambooth_trainer.training.messages import LoopConfig, StepRecord, read_records
from dreambooth_trainer.training.module import DreamBoothModule, make_batch, prepare_module, to_device
from dreambooth_trainer.training.saving import CheckpointSaver, any_rank
from dreambooth_trainer.training.stopping import stop_requested

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def train_loop(loop: LoopConfig) -> None:
    """Train to the last step of the plan, from the last checkpoint if there is one."""
    plan = loop.plan
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(loop.num_threads)
    torch.manual_seed(plan.spec.training.seed)
    data = load_data(loop.data)
    with _last_checkpoint() as checkpoint:
        if checkpoint is not None and read_metadata(checkpoint).step == plan.steps:
            return
        engine = build_engine(plan, world_size, checkpoint)
        records = [] if checkpoint is None else _load_checkpoint(engine, checkpoint, plan, world_size)
    saver, saved_at = CheckpointSaver(engine, rank, loop.report), time.monotonic()
    for step in range(len(records) + 1, plan.steps + 1):
        records.append(run_step(engine, plan, data, step - 1, rank, world_size))
        if rank == 0:
            loop.report(records[-1])
        stop_here = stop_requested(rank)
        # The workers' clocks differ: rank 0 decides for all.
        due = rank == 0 and checkpoint_due(step, plan.checkpoint_every_steps, time.monotonic() - saved_at)
        stop, save = any_rank((stop_here, due), cast("torch.device", engine.device))
        if stop or save or step == plan.steps:
            metadata = CheckpointMetadata(step, world_size, plan.zero_stage, plan.precision)
            if step == plan.steps:
                saver.save_weights(metadata, records)
            elif stop:
                saver.save_now(metadata, records)
            else:
                saver.save(metadata, records)
            saved_at = time.monotonic()
        if stop and step < plan.steps:
            _stop(step, exit_process=stop_here)


def _load_checkpoint(engine: DeepSpeedEngine, checkpoint: Path, plan: Plan, world_size: int) -> list[StepRecord]:
    """Load the state of the engine; returns the records of the steps done."""
    same_size = read_metadata(checkpoint).world_size == world_size
    strict = plan.spec.training.method == "Full"
    engine.load_checkpoint(str(checkpoint), tag=TAG if same_size else None, load_module_strict=strict)
    return read_records(checkpoint)


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


def build_module(plan: Plan) -> tuple[DreamBoothModule, Family]:
    """The model of a plan, prepared by its fine-tuning method; fp32, on the CPU."""
    folder = local_folder(plan.model)
    family = open_family(folder)
    components = family.load(folder, plan.trained_parts)
    return prepare_module(plan, family, components.modules, components.noise_scheduler), family


def build_engine(plan: Plan, world_size: int, checkpoint: Path | None) -> DeepSpeedEngine:
    """The DeepSpeed engine of this worker. A checkpoint of another world size is converted to a universal one."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    from dreambooth_trainer.training.master_weights import set_master_weights

    # gloo suffices on CPUs; compiling DeepSpeed's shared-memory op on first use would take half a minute.
    __compatible_ops__["deepspeed_shm_comm"] = False
    universal = checkpoint is not None and read_metadata(checkpoint).world_size != world_size
    if checkpoint is not None and universal:
        convert_to_universal(checkpoint)
    module, _ = build_module(plan)
    trainable = [p for p in module.parameters() if p.requires_grad]
    # References, not copies: DeepSpeed's cast replaces the tensors. A checkpoint contains the master weights.
    originals = {p: p.data for p in trainable} if checkpoint is None else {}
    optimizer = torch.optim.AdamW(optimizer_groups(plan, module), weight_decay=plan.spec.training.weight_decay)
    lr_scheduler: Any = get_scheduler(
        _lr_scheduler_name(plan),
        optimizer,
        num_warmup_steps=plan.spec.training.warmup_steps,
        num_training_steps=plan.steps,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=lr_scheduler,
        config=deepspeed_config(
            plan,
            world_size=world_size,
            trainable=sum(p.numel() for p in trainable),
            universal=universal,
        ),
    )
    set_master_weights(originals)
    return engine


def optimizer_groups(plan: Plan, module: DreamBoothModule) -> list[dict[str, Any]]:
    """Parameter groups with the learning rates of the plan: the denoiser, then the text encoder if it is trained."""
    rates = {"denoiser": plan.learning_rate, "text_encoder": plan.text_encoder_learning_rate}
    return [
        {"params": [p for p in getattr(module, name).parameters() if p.requires_grad], "lr": rates[name]}
        for name in plan.trained_parts
    ]


def run_step(
    engine: DeepSpeedEngine, plan: Plan, data: TrainingData, step: int, rank: int, world_size: int
) -> StepRecord:
    """Run one optimizer step over all its micro-batches. Losses are means over all workers."""
    accumulation = plan.spec.training.gradient_accumulation_steps
    num_micro_batches = world_size * accumulation
    seed = plan.spec.training.seed
    timesteps = int(cast("DreamBoothModule", engine.module).scheduler.config["num_train_timesteps"])
    instance, prior = data.instance_images, data.class_images
    samplers = (
        DeterministicSampler(
            len(instance) // plan.variants_per_image, plan.batch_size, timesteps, 4 * seed, plan.variants_per_image
        ),
        None if prior is None else DeterministicSampler(len(prior), plan.batch_size, timesteps, 4 * seed + 2),
    )
    device = cast("torch.device", engine.device)
    sums = torch.zeros(3, device=device)
    rate = float(cast("Any", engine.optimizer).param_groups[0]["lr"])
    for micro_step in range(accumulation):
        micro_batch = micro_step * world_size + rank
        batch = to_device(make_batch(data, samplers, step, micro_batch, num_micro_batches), device)
        losses = engine(batch)
        engine.backward(losses[0])
        engine.step()
        sums += losses.detach()
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    loss, instance_loss, prior_loss = (sums / num_micro_batches).tolist()
    return StepRecord(step + 1, loss, instance_loss, None if prior is None else prior_loss, rate, world_size)


@contextlib.contextmanager
def _last_checkpoint() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _lr_scheduler_name(plan: Plan) -> str:
    name = to_snake(plan.spec.training.lr_scheduler)
    return "constant_with_warmup" if name == "constant" else name
