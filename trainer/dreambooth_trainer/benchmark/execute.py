"""Runs the jobs of a benchmark: several at the same time, each on an equal share of the GPUs or cores."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from rich.console import Console

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark.generated import read_references
from dreambooth_trainer.benchmark.kind import Benchmark
from dreambooth_trainer.benchmark.parallel import in_parallel
from dreambooth_trainer.benchmark.progress import ReporterOf, job_reporters
from dreambooth_trainer.benchmark.results import RunResult, collect_result
from dreambooth_trainer.benchmark.runs import RESULT, Run
from dreambooth_trainer.cluster.hardware import local_devices, machine_cores, query_workers
from dreambooth_trainer.cluster.interrupts import interrupt
from dreambooth_trainer.cluster.pool import WorkerPool
from dreambooth_trainer.cluster.session import has_address, ray_cluster
from dreambooth_trainer.families.registry import config_folder
from dreambooth_trainer.images.subjects import prepare_subjects
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.runner import prepare_job, run_job, worker_pool
from dreambooth_trainer.sampling.generate import unload_models
from dreambooth_trainer.sampling.prompt_check import long_prompts
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.run_record import read_run

# Counting a model's memory replaces functions of PyTorch, which threads share.
_PLANNING = threading.Lock()


def check_parallel(job: DreamBoothJob, parallel: int) -> None:
    """Reject more jobs at the same time than this machine has GPUs or cores for. Ray would wait for more forever.

    On a Ray cluster, nodes may still join, so nothing is rejected.

    Args:
        job: any of the jobs: all have the same workers.

    Raises:
        UserError: with the GPUs or cores that are needed and those that there are; or an experiment tracker of the job
            cannot serve several.
    """
    if parallel == 1:
        return
    if shared := sorted({"wandb", "mlflow"}.intersection(job.spec.training.trackers)):
        rule = f"is not possible with {' and '.join(shared)}, which have one run at a time in a process"
        raise UserError(ValidationIssue("--parallel", parallel, rule, "leave it out, or report to tensorboard"))
    if has_address():
        return
    cluster, gpus = job.spec.cluster, query_workers(job.spec.cluster).gpus_per_worker
    workers = cluster.elastic.max_workers if cluster.elastic else cluster.workers
    each, noun = workers * max(1, gpus), "GPU" if gpus else "core"
    present = len(local_devices()[0]) if gpus else machine_cores()
    if parallel * each > present:
        rule = f"needs {parallel * each} {noun}s, {each} for each job, and this machine has {present}"
        remedy = f"set at most {max(1, present // each)}, or set RAY_ADDRESS to a larger Ray cluster"
        raise UserError(ValidationIssue("--parallel", parallel, rule, remedy))


def check_runs(runs: Sequence[Run], prompts: Callable[[Plan], Sequence[str]], parallel: int = 1) -> None:
    """Plan one job of each case and of each variant, and read all images, so that no error is found after hours.

    Args:
        prompts: of a plan, those that its model is measured with.
        parallel: number of jobs that run at the same time.

    Raises:
        UserError: with the issues of all of them; each names its job.
    """
    by_name = {(run.name, run.setting.class_noun, run.setting.images): run for run in reversed(runs)}
    by_variant = {run.variant: run for run in reversed(runs)}
    issues: list[ValidationIssue] = []
    for run in {run.root: run for run in (*by_name.values(), *by_variant.values())}.values():
        try:
            prepared = prepare_job(run.job, parallel)
            plan = prepared.plan
            prepare_subjects(prepared.images, plan.spec, plan.resolution)
            measured = [(f"spec.evaluation.prompts[{index}]", prompt) for index, prompt in enumerate(prompts(plan))]
            found = long_prompts(plan, config_folder(plan.model), measured)
        except UserError as error:
            found = error.issues
        issues += [replace(issue, source=issue.source or run.title) for issue in found]
    for references in {subject.references: None for run in runs for subject in run.subjects if subject.references}:
        try:
            read_references("--dataset", str(references))
        except UserError as error:
            issues += [replace(issue, source=str(references)) for issue in error.issues]
    if issues:
        raise UserError(issues)


@dataclass
class _JobRunner:
    """Runs one job after another, with one pool of workers, which is stopped at the end.

    Attributes:
        parallel: number of jobs that run at the same time.
        pool: None before the first job.
    """

    benchmark: Benchmark
    store: str
    parallel: int
    keep_models: bool
    reporter_of: ReporterOf
    pool: WorkerPool | None = None

    def __enter__(self) -> Callable[[Run], RunResult]:
        return self._run

    def __exit__(self, *_: object) -> None:
        # Other jobs may wait for its GPUs. Without a session, for example after Ctrl-C, there is nothing to stop.
        if self.pool is not None and ray.is_initialized():
            self.pool.stop()

    def _run(self, run: Run) -> RunResult:
        """Run a job, score it, and store the result."""
        if self.pool is not None:
            # Planning runs a task on a GPU, which a worker of the job before may have.
            self.pool.free_memory(unload_models)
        with self.reporter_of(run.title) as reporter:
            with _PLANNING:
                start = time.monotonic()
                key = run.key()  # of the images that the job reads, which may change while it runs
                prepared = prepare_job(run.job, self.parallel)
            # A result of other settings: this job replaces its images.
            (run.root / RESULT).unlink(missing_ok=True)
            # Starting a worker takes ten seconds of imports, and all jobs have the same base model.
            self.pool = self.pool or worker_pool(prepared, self.parallel)
            records = run_job(prepared, run.folder, self.store, reporter, self.pool)
            seconds = time.monotonic() - start
            keys = read_run(run.folder).keys
            commits: Any = records[TrainerPhase.EVALUATE].get("encoderCommits", {})
            context = Context(
                prepared.plan, run.folder, prepared.images, self.store, keys, self.pool, encoder_commits=commits
            )
            measured = self.benchmark.measure(context, run.subjects)
        result = collect_result(key, run.name, run.setting, context, records, measured, seconds)
        atomic_write(run.root / RESULT, result.model_dump_json(by_alias=True, indent=1))
        if not self.keep_models:
            _delete_weights(run.folder)
        return result


def run_all(
    benchmark: Benchmark,
    runs: Sequence[Run],
    store: Path,
    console: Console,
    *,
    parallel: int,
    keep_models: bool,
    on_result: Callable[[Run, RunResult], None],
) -> None:
    """Run the jobs that have no result, in one Ray session.

    Args:
        store: folder with shared class images.
        parallel: number of jobs that run at the same time.
        keep_models: whether the weights stay in the folders of the jobs.
        on_result: called after each job, on the thread of the caller.

    Raises:
        UserError: as `check_parallel` and `check_runs`.
    """
    parallel = min(parallel, len(runs))
    check_parallel(runs[0].job, parallel)
    with ray_cluster(), job_reporters(console, parallel) as reporter_of:
        check_runs(runs, benchmark.prompts, parallel)
        runners = [
            _JobRunner(benchmark, str(store.resolve()), parallel, keep_models, reporter_of) for _ in range(parallel)
        ]
        for run, result in in_parallel(runs, runners, interrupt):
            on_result(run, result)


def _delete_weights(folder: JobFolder) -> None:
    """Delete what a benchmark of hundreds of jobs has no space for. Images, scores, reports and records stay."""
    # If the job runs again, it must publish again: without its weights the model is not complete.
    folder.completion_record(TrainerPhase.PUBLISH).unlink(missing_ok=True)
    shutil.rmtree(folder.trained, ignore_errors=True)
    for path in (*folder.model.rglob("*.safetensors"), *folder.work.glob("*.safetensors")):
        path.unlink()
