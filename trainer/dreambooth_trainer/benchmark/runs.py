"""The jobs of a benchmark: every subject with every method and seed, each an ordinary job."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import CAPTION_SUFFIX, METADATA, is_candidate, is_visible
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.benchmark.dataset import DatasetSubject
from dreambooth_trainer.benchmark.results import RunResult, collect_result
from dreambooth_trainer.families.registry import base_digest, pinned
from dreambooth_trainer.images.subjects import prepare_subjects
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import resolve_folders
from dreambooth_trainer.jobfile.overrides import apply_sets
from dreambooth_trainer.planning.plan import fingerprint, model_ref
from dreambooth_trainer.progress.console import Reporter
from dreambooth_trainer.store.folder import JobFolder, atomic_write

RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One job of a benchmark, its subject, the digest of its base model, and its folder."""

    subject: DatasetSubject
    method: str
    seed: int
    job: DreamBoothJob
    base_digest: str
    root: Path

    @property
    def folder(self) -> JobFolder:
        return JobFolder(self.root / "job")

    @property
    def title(self) -> str:
        return f"{self.subject.name}, {self.method}, seed {self.seed}"

    def key(self) -> str:
        """Fingerprint of the job, its base model and its images."""
        folder = self.subject.folder
        files: list[JsonValue] = [
            [str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()]
            for path in sorted(folder.rglob("*"))
            if path.is_file() and all(map(is_visible, path.relative_to(folder).parts)) and _is_read(path.name)
        ]
        return fingerprint({"job": self.job.model_dump(mode="json"), "base": self.base_digest, "files": files})

    def result(self) -> RunResult | None:
        """The stored result; None if the job has not finished, or was another one."""
        try:
            result = RunResult.model_validate_json((self.root / RESULT).read_text())
        except (FileNotFoundError, ValidationError):
            return None
        return result if result.key == self.key() else None


def _is_read(name: str) -> bool:
    """Whether a job reads a file of its folder of images."""
    return is_candidate(name) or name == METADATA or name.lower().endswith(CAPTION_SUFFIX)


def make_runs(
    subjects: Sequence[DatasetSubject], methods: Sequence[str], seeds: int, base: str, sets: Sequence[str], out: Path
) -> list[Run]:
    """All jobs, so ordered that an interrupted benchmark has the same seeds of as many subjects as possible.

    Raises:
        UserError: with the issues of all jobs, each once.
    """
    jobs: list[tuple[DatasetSubject, str, int, DreamBoothJob]] = []
    issues: dict[str, ValidationIssue] = {}
    for seed, subject, method in itertools.product(range(seeds), subjects, methods):
        try:
            jobs.append((subject, method, seed, make_job(subject, method, seed, base, sets)))
        except UserError as error:
            issues |= {str(issue): issue for issue in error.issues}
    if issues:
        raise UserError(list(issues.values()))
    digest = base_digest(pinned(model_ref(jobs[0][-1])))
    return [Run(*job, digest, (out / "jobs" / job[0].name / f"{job[1]}-{job[2]}").resolve()) for job in jobs]


def make_job(subject: DatasetSubject, method: str, seed: int, base: str, sets: Sequence[str]) -> DreamBoothJob:
    """The job of a subject, with overrides.

    Raises:
        UserError: the subject, the base model or an override is invalid.
    """
    name = "".join(c if c.isalnum() else "-" for c in f"{subject.name}-{method}-{seed}".lower())
    spec: dict[str, JsonValue] = {
        "model": {"id": base},
        "subject": {"class": subject.class_, "images": {"uri": str(subject.folder)}},
        "training": {"method": method, "seed": seed},
        "evaluation": {"prompts": list[JsonValue](subject.prompts)},
    }
    if method == "Full":
        spec["output"] = {"formats": ["diffusers"]}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    value, origins, issues = apply_sets(document, sets)

    try:
        job = validate(DreamBoothJob, value, lambda path: origins.get(path, ""), subject.name)
    except UserError as error:
        raise UserError([*issues, *error.issues]) from error
    given = job.spec
    own = (given.training.method, given.training.seed, given.evaluation.enabled, given.output.uri)
    if own != (method, seed, True, None):
        rule = "sets training.method, training.seed, evaluation.enabled or output.uri, which the benchmark sets itself"
        issues.append(ValidationIssue("--set", None, rule, "leave it out; see --methods and --seeds"))
    if issues:
        raise UserError(issues)
    return resolve_folders(job, Path.cwd())


def check_runs(runs: Sequence[Run]) -> None:
    """Plan one job of each subject and of each method, so that no error is found after hours.

    Raises:
        UserError: with the issues of all of them; each names its job.
    """
    from dreambooth_trainer.runner import prepare_job

    by_subject = {run.subject.name: run for run in reversed(runs)}
    by_method = {run.method: run for run in reversed(runs)}
    issues: list[ValidationIssue] = []
    for run in {run.root: run for run in (*by_subject.values(), *by_method.values())}.values():
        try:
            prepared = prepare_job(run.job)
            prepare_subjects(prepared.images, prepared.plan.spec, prepared.plan.resolution)
        except UserError as error:
            issues += [replace(issue, source=issue.source or run.title) for issue in error.issues]
    if issues:
        raise UserError(issues)


def run_all(
    runs: Sequence[Run],
    store: Path,
    reporter: Reporter,
    *,
    keep_models: bool,
    on_result: Callable[[Run, RunResult], None],
) -> None:
    """Run the jobs that have no result, with one Ray session and one pool of workers.

    Args:
        store: folder with shared class images.
        keep_models: whether the weights stay in the folders of the jobs.
        on_result: called after each job.

    Raises:
        UserError: as `check_runs`.
    """
    from dreambooth_trainer.cluster.session import ray_cluster
    from dreambooth_trainer.runner import prepare_job, run_job, worker_pool
    from dreambooth_trainer.sampling.generate import unload_models

    pool = None
    with ray_cluster():
        check_runs(runs)
        for run in runs:
            start = time.monotonic()
            reporter.note(f"\n{run.title}")
            if pool is not None:
                # Planning runs a task on a GPU, which a worker of the job before may have.
                pool.free_memory(unload_models)
            prepared = prepare_job(run.job)
            # Starting a worker takes ten seconds of imports, and all jobs have the same base model.
            pool = pool or worker_pool(prepared)
            records = run_job(prepared, run.folder, str(store.resolve()), reporter, pool)
            result = collect_result(run.key(), run.subject.name, run.folder, records, time.monotonic() - start)
            atomic_write(run.root / RESULT, result.model_dump_json(by_alias=True, indent=1))
            if not keep_models:
                _delete_weights(run.folder)
            on_result(run, result)


def _delete_weights(folder: JobFolder) -> None:
    """Delete what a benchmark of hundreds of jobs has no space for. Images, scores, reports and records stay."""
    # If the job runs again, it must publish again: without its weights the model is not complete.
    folder.completion_record(TrainerPhase.PUBLISH).unlink(missing_ok=True)
    shutil.rmtree(folder.trained, ignore_errors=True)
    for path in (*folder.model.rglob("*.safetensors"), *folder.work.glob("*.safetensors")):
        path.unlink()
