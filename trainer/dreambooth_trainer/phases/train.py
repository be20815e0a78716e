"""Trains with Ray Train and DeepSpeed on all workers, from the last checkpoint if there is one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import JsonValue

from dreambooth_api.errors import TransientError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.families.base import trained_modules
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.generate import unload_models
from dreambooth_trainer.store.folder import JobFolder, atomic_directory, atomic_write
from dreambooth_trainer.training.messages import (
    CheckpointSaved,
    LoopConfig,
    ProgressActor,
    ReportCallback,
    StepRecord,
    TrainingProgress,
    read_records,
    report_to,
)
from dreambooth_trainer.training.worker import run_worker

# Heavy libraries are imported inside functions: the driver does not need them.
if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from torch import Tensor

POLL_SECONDS = 0.5


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    # Number of workers, ZeRO stage and checkpoint interval do not change the result: a job can resume with others.
    excluded = {
        "deepspeed",
        "checkpoint_every_steps",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "compile",
    }
    return {
        "encode": context.keys[TrainerPhase.ENCODE],
        "training": plan.spec.training.model_dump(mode="json", exclude=excluded),
        "steps": plan.steps,
        "rates": [*(stage.learning_rate for stage in plan.stages), plan.text_encoder_learning_rate],
        "batch_size": plan.batch_size,
        "precision": plan.precision,
        "prior_loss_weight": plan.spec.prior_preservation.loss_weight,
    }


def _complete(context: Context) -> bool:
    folders = [context.folder.of_stage(stage.stage) for stage in context.plan.stages]
    return all(folder.trained.exists() and folder.losses.exists() for folder in folders)


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    stages = context.plan.stages
    progress.total(context.plan.steps * len(stages))
    # A stage whose training was complete before an interruption ends at once.
    losses = [_train_stage(context, stage, _Progress(progress, stage, number)) for number, stage in enumerate(stages)]
    return {"steps": context.plan.steps * len(stages), "loss": losses[-1]}


def _train_stage(context: Context, plan: Plan, progress: _Progress) -> float:
    """Train a stage and write its model; returns the loss of the last step."""
    folder = context.folder.of_stage(plan.stage)
    context.pool.free_memory(unload_models)
    # On the driver's node: the run must survive the loss of any worker's node.
    driver_node = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    progress_actor: Any = ray.remote(num_cpus=0, label_selector=driver_node)(ProgressActor).remote()
    try:
        trainer = build_trainer(plan, folder, context.keys[TrainerPhase.TRAIN], partial(report_to, progress_actor))
        checkpoint = _fit(trainer, progress_actor, progress.report)
    except Exception as error:
        # Ray may kill the controller or the progress actor instead of a worker.
        if memory_error := out_of_memory(error, "training"):
            raise memory_error from error
        raise
    finally:
        ray.kill(progress_actor)
    records = read_records(checkpoint)
    progress.report(records[-1], CheckpointSaved(len(records)))
    context.pool.call(save_trained_model, plan, checkpoint, folder)
    atomic_write(folder.losses, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    return records[-1].loss


@dataclass(frozen=True)
class _Progress:
    """Reports the steps of a stage, after those of the stages before it.

    Attributes:
        number: of the stage, from 0.
    """

    phase: PhaseProgress
    stage: Plan
    number: int

    def report(self, record: StepRecord, saved: CheckpointSaved | None) -> None:
        before = self.number * self.stage.steps
        step = before + record.step
        saved_step = {} if saved is None else {"saved_step": before + saved.step}
        samples = step * self.stage.batch_size
        self.phase.done(step, loss=record.loss, samples=samples, world_size=record.world_size, **saved_step)


def _fit(
    trainer: TorchTrainer, progress_actor: Any, report: Callable[[StepRecord, CheckpointSaved | None], None]
) -> Path:
    """Train to the end and report progress; returns the last checkpoint.

    Ray Train restarts the workers after any error. A worker that reports a fatal error ends the run without a restart.
    `fit` runs in a thread: on the main thread Ray Train handles Ctrl-C itself and exits with code 0.
    """
    future: Future[Path] = Future()

    def fit() -> None:
        try:
            checkpoint = trainer.fit().checkpoint
            assert checkpoint is not None, "training ended without a checkpoint"
            future.set_result(Path(checkpoint.path))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fit, daemon=True).start()
    while True:
        finished = wait([future], timeout=POLL_SECONDS).done
        progress: TrainingProgress = ray.get(progress_actor.last.remote())
        if progress.error is not None:
            raise progress.error.error or TransientError(progress.error.message)
        if finished:
            return future.result()
        if progress.record is not None:
            report(progress.record, progress.saved)


def build_trainer(plan: Plan, folder: JobFolder, key: str, report: ReportCallback) -> TorchTrainer:
    """Ray Train's trainer for a plan.

    Args:
        key: names the run; a trainer with the same key resumes from the checkpoints of an earlier one.
        report: sends messages of the workers to the driver.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from dreambooth_trainer.training.worker_group import SavedStepReporter, WorkerGroupCleanup

    minimum, maximum = plan.world_sizes
    num_threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // maximum)
    gpu = plan.gpus_per_worker > 0
    callbacks: list[Any] = [WorkerGroupCleanup(report), SavedStepReporter(report)]
    return TorchTrainer(
        run_worker,
        train_loop_config={"loop": LoopConfig(plan, folder.latents.resolve(), num_threads, report)},
        scaling_config=ScalingConfig(
            num_workers=minimum if minimum == maximum else (minimum, maximum),
            use_gpu=gpu,  # one GPU per training process, also if a pod has several
            resources_per_worker=None if gpu else {"CPU": 1},
        ),
        run_config=RunConfig(
            name=key[:16],
            storage_path=str(folder.checkpoints.resolve()),
            failure_config=FailureConfig(max_failures=plan.spec.run_policy.backoff_limit),
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            callbacks=callbacks,
        ),
    )


def save_trained_model(plan: Plan, checkpoint: Path, folder: JobFolder) -> None:
    """Write the base model with the trained weights as a diffusers folder, with its adapter and its new tokens."""
    from dreambooth_trainer.families.embeddings import save_embeddings
    from dreambooth_trainer.families.stored_dtype import stored_dtype
    from dreambooth_trainer.training.checkpoint import trained_weights
    from dreambooth_trainer.training.module import set_training_dtypes

    base = local_folder(plan.model)
    family, method = open_family(base), open_method(plan.spec.training.method)
    weights, modules, adapters, embeddings, slots = trained_weights(checkpoint), {}, {}, {}, []
    for name in trained_modules(family, text_encoders=plan.live_text_encoders):
        trained = _pop_prefix(weights, f"trained.{name}.")
        if not trained:  # frozen: the module is that of the base model
            continue
        # One module at a time, each cast to the number format of the base model before the next one is loaded.
        stage = family.open(base, [name])
        method.prepare(stage, plan, family.lora_target_modules())
        set_training_dtypes(stage.modules[name], plan.precision)
        result = method.result(stage, plan, {name: trained})
        modules[name] = result.modules[name].to(stored_dtype(base / name))
        adapters |= result.adapters
        embeddings |= result.embeddings
        slots = stage.text if result.embeddings else slots
    with atomic_directory(folder.trained) as draft:
        family.save(base, modules, draft)
        if adapters:
            family.save_adapter(adapters, draft)
        if embeddings:
            save_embeddings(slots, embeddings, draft)


def _pop_prefix(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    names = [name for name in weights if name.startswith(prefix)]
    return {name.removeprefix(prefix): weights.pop(name) for name in names}


TRAIN = Phase(TrainerPhase.TRAIN, _inputs, _complete, _run)
