"""What each Ray Train worker runs: DeepSpeed around the module, step after step, a checkpoint now and then."""

from __future__ import annotations

import contextlib
import json
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import ray.train
import torch
from diffusers.optimization import get_scheduler

from dreambooth_trainer.families.base import Family
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.training.batches import DeterministicSampler
from dreambooth_trainer.training.cache import TrainingData, load_data
from dreambooth_trainer.training.checkpoint import (
    TAG,
    CheckpointMetadata,
    convert_to_universal,
    read_metadata,
    write_metadata,
)
from dreambooth_trainer.training.deepspeed_config import deepspeed_config
from dreambooth_trainer.training.messages import RECORDS_FILE, LoopConfig, Record, read_records
from dreambooth_trainer.training.module import DreamBoothModule, make_batch, to_device

if TYPE_CHECKING:
    from deepspeed import DeepSpeedEngine


def train_loop(loop: LoopConfig) -> None:
    """Train from the last checkpoint, or from the start, to the plan's last step."""
    plan = loop.plan
    context = ray.train.get_context()
    rank, world_size = context.get_world_rank(), context.get_world_size()
    torch.set_num_threads(loop.threads)
    torch.manual_seed(plan.spec.training.seed)
    data = load_data(loop.data)
    records: list[Record] = []
    with _restored() as saved:
        engine = build_engine(plan, world_size, saved)
        if saved is not None:
            same_size = read_metadata(saved).world_size == world_size
            strict = plan.spec.training.method == "Full"
            engine.load_checkpoint(str(saved), tag=TAG if same_size else None, load_module_strict=strict)
            records = read_records(saved)
    for step in range(len(records), plan.steps):
        records.append(run_step(engine, plan, data, step, rank, world_size))
        if rank == 0:
            loop.tell(records[-1])
        if (step + 1) % plan.checkpoint_every_steps == 0 or step + 1 == plan.steps:
            report_checkpoint(
                engine, CheckpointMetadata(step + 1, world_size, plan.zero_stage, plan.precision), records
            )


def build_module(plan: Plan) -> tuple[DreamBoothModule, Family]:
    """The plan's model with its method applied, fp32 on the CPU."""
    folder = local_folder(plan.model)
    family, method = open_family(folder), open_method(plan.spec.training.method)
    parts = family.load(folder, with_vae=False)
    for part in plan.trained_parts:
        learning = getattr(parts, part).train()
        method.prepare(learning, plan.spec.training, family.lora_target_modules()[part])
    text_encoder = parts.text_encoder if plan.train_text_encoder else None
    if plan.spec.training.gradient_checkpointing:
        parts.denoiser.enable_gradient_checkpointing()  # pyright: ignore[reportCallIssue] - every diffusers model has it
        if text_encoder is not None:
            text_encoder.gradient_checkpointing_enable()  # pyright: ignore[reportCallIssue] - every transformers model has it
    module = DreamBoothModule(
        family, parts.noise_scheduler, parts.denoiser, text_encoder, plan.spec.prior_preservation.loss_weight
    )
    return module, family


def build_engine(plan: Plan, world_size: int, saved: Path | None) -> DeepSpeedEngine:
    """A DeepSpeed engine for this worker; a checkpoint of another world size is made universal first."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__

    from dreambooth_trainer.training.master_weights import set_masters

    # gloo serves the CPU; DeepSpeed's shared-memory op would be compiled on first use, half a minute.
    __compatible_ops__["deepspeed_shm_comm"] = False
    universal = saved is not None and read_metadata(saved).world_size != world_size
    if saved is not None and universal:
        convert_to_universal(saved)
    module, _ = build_module(plan)
    trainable = [p for p in module.parameters() if p.requires_grad]
    # Only references: DeepSpeed's cast replaces the tensors. A checkpoint brings weights of its own.
    originals = {p: p.data for p in trainable} if saved is None else {}
    optimizer = torch.optim.AdamW(optimizer_groups(plan, module), weight_decay=plan.spec.training.weight_decay)
    schedule: Any = get_scheduler(
        _schedule_name(plan),
        optimizer,
        num_warmup_steps=plan.spec.training.warmup_steps,
        num_training_steps=plan.steps,
    )
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(
            plan,
            world_size=world_size,
            trainable=sum(p.numel() for p in trainable),
            universal=universal,
        ),
    )
    set_masters(originals)
    return engine


def optimizer_groups(plan: Plan, module: DreamBoothModule) -> list[dict[str, Any]]:
    """What learns, at the rates of the plan: the denoiser, then the text encoder where it learns."""
    rates = {"denoiser": plan.learning_rate, "text_encoder": plan.text_encoder_learning_rate}
    return [
        {"params": [p for p in getattr(module, part).parameters() if p.requires_grad], "lr": rates[part]}
        for part in plan.trained_parts
    ]


def run_step(engine: DeepSpeedEngine, plan: Plan, data: TrainingData, step: int, rank: int, world_size: int) -> Record:
    """One optimizer step over all its micro-batches; losses are means over all workers."""
    accumulation = plan.spec.training.gradient_accumulation_steps
    parts = world_size * accumulation
    seed = plan.spec.training.seed
    timesteps = int(cast("DreamBoothModule", engine.module).scheduler.config["num_train_timesteps"])
    orders = (
        DeterministicSampler(len(data.instance), plan.batch_size, timesteps, 4 * seed),
        None if data.prior is None else DeterministicSampler(len(data.prior), plan.batch_size, timesteps, 4 * seed + 2),
    )
    device = cast("torch.device", engine.device)
    sums = torch.zeros(3, device=device)
    rate = float(cast("Any", engine.optimizer).param_groups[0]["lr"])
    for micro in range(accumulation):
        batch = to_device(make_batch(data, orders, step, micro * world_size + rank, parts), device)
        losses = engine(batch)
        engine.backward(losses[0])
        engine.step()
        sums += losses.detach()
    if world_size > 1:
        torch.distributed.all_reduce(sums)
    total, instance, prior = (sums / parts).tolist()
    return Record(step + 1, total, instance, None if data.prior is None else prior, rate)


def report_checkpoint(engine: DeepSpeedEngine, metadata: CheckpointMetadata, records: list[Record]) -> None:
    """Hand this worker's shard to Ray Train, which shows the checkpoint once all shards are there."""
    with tempfile.TemporaryDirectory() as folder:
        engine.save_checkpoint(folder, tag=TAG, client_state={}, exclude_frozen_parameters=True)
        write_metadata(Path(folder), metadata)
        lines = "".join(json.dumps(asdict(record)) + "\n" for record in records)
        (Path(folder) / RECORDS_FILE).write_text(lines)
        checkpoint = ray.train.Checkpoint.from_directory(folder)
        ray.train.report({"step": metadata.step}, checkpoint=checkpoint)


@contextlib.contextmanager
def _restored() -> Iterator[Path | None]:
    checkpoint = ray.train.get_checkpoint()
    if checkpoint is None:
        yield None
        return
    with checkpoint.as_directory() as folder:
        yield Path(folder)


def _schedule_name(plan: Plan) -> str:
    name = plan.spec.training.lr_scheduler.lower()
    return "constant_with_warmup" if name == "constant" else name
