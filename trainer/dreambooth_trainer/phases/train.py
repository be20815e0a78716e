"""Trains with Ray Train and DeepSpeed on all workers, from the last checkpoint if there is one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import JsonValue

from dreambooth_api.errors import TransientError
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.cluster.interrupts import check_interrupted
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.cluster.session import has_address
from dreambooth_trainer.families.base import modules_in_training
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.phases.observe import Observer, observing
from dreambooth_trainer.phases.select import Choice
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
NO_CHOICE = "The weights of the last step were published, because no step could be selected by the validations"
"""Without the cause, which may contain paths: it is published with the model."""


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    # Number of workers, ZeRO stage, checkpoint interval, validation and trackers do not change the result: a job can
    # resume with others.
    excluded = {
        "deepspeed",
        "checkpoint_every_steps",
        "gradient_accumulation_steps",
        "gradient_checkpointing",
        "compile",
        "validation",
        "report_to",
        "hyper_network",  # the key of the encode phase has its digest
    }
    return {
        "encode": context.keys[TrainerPhase.ENCODE],
        "training": plan.spec.training.model_dump(mode="json", exclude=excluded),
        "steps": plan.steps,
        "rates": [*(stage.learning_rate for stage in plan.stages), plan.text_encoder_learning_rate],
        "batch_size": plan.batch_size,
        "precision": plan.precision,
        "preservation": [plan.spec.preservation, plan.spec.prior_loss_weight],
        **_selection_inputs(plan),
    }


def _selection_inputs(plan: Plan) -> dict[str, JsonValue]:
    """What the selection of a step depends on. Other jobs keep the key that they had before it existed."""
    validation = plan.spec.training.validation
    if validation is None or plan.spec.output.select == "Last":
        return {}
    return {
        "select": {
            "validation": validation.model_dump(mode="json"),
            "sampler": plan.sampler.model_dump(mode="json"),
            "encoders": [plan.dino, plan.clip],
        }
    }


def _complete(context: Context) -> bool:
    folders = [context.folder.of_stage(stage.stage) for stage in context.plan.stages]
    return all(folder.trained.exists() and folder.losses.exists() for folder in folders)


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    stages = context.plan.stages
    if not context.plan.spec.training.traits.trains:
        atomic_write(context.folder.losses, "")
        return {"steps": 0}
    progress.total(context.plan.steps * len(stages))
    # A stage whose training was complete before an interruption ends at once.
    trained = [_train_stage(context, stage, _Progress(progress, stage, number)) for number, stage in enumerate(stages)]
    result: dict[str, JsonValue] = {"steps": sum(stage.last.step for stage in trained), "loss": trained[-1].last.loss}
    for stage in trained:
        if stage.choice is None:
            continue
        if stage.choice.step is None:
            result["selection"] = NO_CHOICE
        else:
            result |= {"selectedStep": stage.choice.step, "selection": stage.choice.reason}
    warnings: list[JsonValue] = [warning for stage in trained for warning in stage.warnings]
    return {**result, "warnings": warnings} if warnings else result


@dataclass(frozen=True)
class _TrainedStage:
    """The result of a stage.

    Attributes:
        last: record of the last step that was trained.
        choice: of the weights to publish; None if they are those of that step, as the job asks for.
        warnings: sentences for the user.
    """

    last: StepRecord
    choice: Choice | None
    warnings: Sequence[str]


def _train_stage(context: Context, plan: Plan, progress: _Progress) -> _TrainedStage:
    """Train a stage and write its model."""
    folder = context.folder.of_stage(plan.stage)
    context.pool.free_memory(unload_models)
    # On the driver's node: the run must survive the loss of any worker's node.
    options = {"num_cpus": 0, "label_selector": {"ray.io/node-id": ray.get_runtime_context().get_node_id()}}
    progress_actor: Any = ray.remote(**options)(ProgressActor).remote()
    report, key = partial(report_to, progress_actor), context.keys[TrainerPhase.TRAIN]
    try:
        with observing(context, plan, progress_actor, options) as observer:
            trainer = build_trainer(plan, folder, key, report, observer, cores=context.pool.cores())
            checkpoint = _fit(trainer, progress_actor, progress.report, partial(_wait, progress.phase, observer))
            records = read_records(checkpoint)
            if observer is not None:
                observer.succeed(records)
    except Exception as error:
        # Ray may kill the controller or the progress actor instead of a worker.
        if memory_error := out_of_memory(error, "training"):
            raise memory_error from error
        raise
    finally:
        if ray.is_initialized():  # not after Ctrl-C in another thread; `ray.kill` would start a session
            ray.kill(progress_actor)
    ended = partial(progress.report, records[-1], CheckpointSaved(len(records)))
    ended()
    choice = None if observer is None else observer.choose(ended)
    weights = (choice and choice.weights) or checkpoint
    context.pool.call(save_trained_model, plan, weights, folder)
    if choice is not None:
        ended(choice.step)
    atomic_write(folder.losses, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    return _TrainedStage(records[-1], choice, observer.warnings if observer is not None else ())


@dataclass(frozen=True)
class _Progress:
    """Reports the steps of a stage, after those of the stages before it.

    Attributes:
        number: of the stage, from 0.
    """

    phase: PhaseProgress
    stage: Plan
    number: int

    def report(self, record: StepRecord, saved: CheckpointSaved | None, selected: int | None = None) -> None:
        before = self.number * self.stage.steps
        step = before + record.step
        steps = {"saved_step": saved and saved.step, "selected_step": selected}
        reached = {name: before + one for name, one in steps.items() if one is not None}
        samples = step * self.stage.batch_size
        self.phase.done(step, loss=record.loss, samples=samples, world_size=record.world_size, **reached)


def _fit(
    trainer: TorchTrainer,
    progress_actor: Any,
    report: Callable[[StepRecord, CheckpointSaved | None], None],
    waiting: Callable[[], None],
) -> Path:
    """Train to the end and report progress; returns the last checkpoint.

    Ray Train restarts the workers after any error. A worker that reports a fatal error ends the run without a restart.
    `fit` runs in a thread: on the main thread Ray Train handles Ctrl-C itself and exits with code 0.

    Args:
        waiting: called at intervals until there is a record to report.
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
        check_interrupted()
        progress: TrainingProgress = ray.get(progress_actor.last.remote())
        if progress.error is not None:
            raise progress.error.error or TransientError(progress.error.message)
        if finished:
            return future.result()
        if progress.record is not None:
            report(progress.record, progress.saved)
        else:
            waiting()


def _wait(phase: PhaseProgress, observer: Observer | None) -> None:
    """Report that images are generated before the first step, so that the attempt does not count as hung."""
    if observer is not None and observer.progressed():
        phase.done(0)


def build_trainer(
    plan: Plan, folder: JobFolder, key: str, report: ReportCallback, observer: Observer | None = None, *, cores: int
) -> TorchTrainer:
    """Ray Train's trainer for a plan.

    Args:
        key: names the run; a trainer with the same key resumes from the checkpoints of an earlier one.
        report: sends messages of the workers to the driver.
        observer: of validations and trackers; None without them.
        cores: number of cores that all workers can use.
    """
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from dreambooth_trainer.training.local_trainer import LocalTrainer
    from dreambooth_trainer.training.worker_group import SavedStepReporter, WorkerGroupCleanup

    minimum, maximum = plan.world_sizes
    num_threads = max(1, cores // maximum)
    gpu = plan.gpus_per_worker > 0
    callbacks: list[Any] = [WorkerGroupCleanup(report), SavedStepReporter(report)]
    validations, candidates = (None, None) if observer is None else (observer.validations, observer.candidates)
    initial = folder.initial_adapter.resolve() if plan.hyper_network else None
    loop = LoopConfig(plan, folder.latents.resolve(), num_threads, report, validations, candidates, initial)
    trainer = TorchTrainer if has_address() else LocalTrainer
    return trainer(
        run_worker,
        train_loop_config={"loop": loop},
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
    """Write the base model with the trained weights as a diffusers folder, with its adapter and its new tokens.

    Args:
        checkpoint: folder with the trained weights.
    """
    from dreambooth_trainer.families.embeddings import save_embeddings
    from dreambooth_trainer.families.stored_dtype import stored_dtype
    from dreambooth_trainer.training.checkpoint import trained_weights
    from dreambooth_trainer.training.module import set_training_dtypes

    base = local_folder(plan.model)
    family, method = open_family(base), open_method(plan.spec.training.method)
    weights, modules, adapters, embeddings, slots = trained_weights(checkpoint), {}, {}, {}, []
    for name in modules_in_training(family, plan):
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
