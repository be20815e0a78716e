"""Train: Ray Train and DeepSpeed over all workers, from the last checkpoint if there is one."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from pydantic import JsonValue

from dreambooth_api.errors import TransientError
from dreambooth_trainer.cluster.memory_errors import out_of_memory
from dreambooth_trainer.families.registry import local_folder, open_family
from dreambooth_trainer.methods.registry import open_method
from dreambooth_trainer.phases.base import Context, Phase
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.progress.console import PhaseProgress
from dreambooth_trainer.sampling.generate import drop_models
from dreambooth_trainer.store.folder import JobFolder, atomic_directory, atomic_write
from dreambooth_trainer.training.messages import FatalWorkerError, LoopConfig, ProgressActor, Record, post, read_records
from dreambooth_trainer.training.worker import run_worker

# Heavy imports stand in the functions that need them: the driver has no use for them.
if TYPE_CHECKING:
    from ray.train.torch import TorchTrainer
    from torch import Tensor

WATCH_SECONDS = 0.5


def _inputs(context: Context) -> JsonValue:
    plan = context.plan
    # Workers, ZeRO stage and how often to save change the course of a run, not its result: a job may go on with others.
    unchanged = {"deepspeed", "checkpoint_every_steps", "gradient_accumulation_steps", "gradient_checkpointing"}
    return {
        "encode": context.keys["encode"],
        "training": plan.spec.training.model_dump(mode="json", exclude=unchanged),
        "steps": plan.steps,
        "rates": [plan.learning_rate, plan.text_encoder_learning_rate],
        "batch_size": plan.batch_size,
        "precision": plan.precision,
        "prior_weight": plan.spec.prior_preservation.loss_weight,
    }


def _complete(context: Context) -> bool:
    return context.folder.trained.exists() and context.folder.losses.exists()


def _run(context: Context, progress: PhaseProgress) -> dict[str, JsonValue]:
    plan, folder = context.plan, context.folder
    progress.total(plan.steps)
    context.pool.free_memory(drop_models)
    # Beside the driver: on a worker's node it would die with that, and the run with it.
    here = {"ray.io/node-id": ray.get_runtime_context().get_node_id()}
    progress_actor: Any = ray.remote(num_cpus=0, label_selector=here)(ProgressActor).remote()
    try:
        # A method handle travels to the workers; a lambda over it would as well but says less.
        trainer = build_trainer(plan, folder, context.keys["train"], partial(post, progress_actor))
        checkpoint = _fit(trainer, progress_actor, progress)
    except Exception as error:
        # Ray may kill the controller or the progress_actor in place of a worker.
        if shortage := out_of_memory(error, "training"):
            raise shortage from error
        raise
    finally:
        ray.kill(progress_actor)
    records = read_records(checkpoint)
    progress.done(len(records), loss=records[-1].loss)
    context.pool.call(assemble, plan, checkpoint, folder)
    atomic_write(folder.losses, "".join(json.dumps(asdict(record)) + "\n" for record in records))
    return {"steps": len(records), "loss": records[-1].loss}


def _fit(trainer: TorchTrainer, progress_actor: Any, progress: PhaseProgress) -> Path:
    """Train to the end, telling progress meanwhile; returns the last checkpoint.

    Ray Train starts the workers anew whatever ended them. Where that cannot help they say so, and nobody waits for it.

    Ray Train, on the main thread, would take Ctrl-C for itself and exit with 0. On another it leaves it to us.
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
        over = wait([future], timeout=WATCH_SECONDS).done
        news: Any = ray.get(progress_actor.read.remote())
        if isinstance(news, FatalWorkerError):
            raise news.error or TransientError(news.message)
        if over:
            return future.result()
        if news is not None:
            progress.done(news.step, loss=news.loss)


def build_trainer(
    plan: Plan, folder: JobFolder, key: str, tell: Callable[[Record | FatalWorkerError], object]
) -> TorchTrainer:
    """Ray Train's trainer for a plan; the same key finds the checkpoints of an earlier run."""
    from ray.train import CheckpointConfig, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from dreambooth_trainer.training.worker_group import WorkerGroupCleanup

    low, high = plan.world_sizes
    threads = max(1, int(ray.cluster_resources().get("CPU", 1)) // high)
    gpu = plan.gpus_per_worker > 0
    callbacks: list[Any] = [WorkerGroupCleanup(tell)]
    return TorchTrainer(
        run_worker,
        train_loop_config={"loop": LoopConfig(plan, folder.latents.resolve(), threads, tell)},
        scaling_config=ScalingConfig(
            num_workers=low if low == high else (low, high),
            use_gpu=gpu,  # one GPU per training process, also where a pod has several
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


def assemble(plan: Plan, checkpoint: Path, folder: JobFolder) -> None:
    """Put the trained weights into the base model and write it as a diffusers folder, an adapter beside it."""
    from dreambooth_trainer.training.checkpoint import trained_weights

    base = local_folder(plan.model)
    family, method = open_family(base), open_method(plan.spec.training.method)
    parts = family.load(base, with_vae=False)
    weights, training = trained_weights(checkpoint), plan.spec.training
    modules, adapters = {"denoiser": parts.denoiser, "text_encoder": parts.text_encoder}, {}
    for part in plan.trained_parts:
        trained = _under(weights, f"{part}.")
        method.prepare(modules[part], training, family.lora_target_modules()[part])
        adapter = method.adapter(modules[part], trained)
        if adapter is not None:
            adapters[part] = adapter
        modules[part] = method.restore(modules[part], trained, training)
    with atomic_directory(folder.trained) as draft:
        family.save(base, modules["denoiser"], modules["text_encoder"], draft)
        if adapters:
            family.save_adapter(adapters, draft)


def _under(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}


TRAIN = Phase("train", _inputs, _complete, _run)
