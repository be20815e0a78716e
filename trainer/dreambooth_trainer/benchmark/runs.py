"""The jobs of a benchmark: every subject or pair with every method, mode of preservation and seed."""

from __future__ import annotations

import hashlib
import itertools
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import CAPTION_SUFFIX, METADATA, is_candidate, is_visible
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.methods import MEMBERS, METHODS
from dreambooth_api.preservation import MODE_MEMBERS
from dreambooth_api.status import TrainerPhase
from dreambooth_api.training import SETTINGS_OF_TRAINING
from dreambooth_trainer.benchmark.jobs import Case, case_name, make_job
from dreambooth_trainer.benchmark.kind import Benchmark
from dreambooth_trainer.benchmark.results import RunResult, collect_result
from dreambooth_trainer.benchmark.variants import Variant, vary
from dreambooth_trainer.families.ip_adapter import adapter_digest, pinned_adapter
from dreambooth_trainer.families.registry import base_digest, config_folder, pinned
from dreambooth_trainer.hypernetwork.files import network_digest, pinned_network
from dreambooth_trainer.images.subjects import prepare_subjects
from dreambooth_trainer.phases.base import Context
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.image_prompts import plan_image_prompts
from dreambooth_trainer.planning.plan import Plan, fingerprint, model_ref
from dreambooth_trainer.progress.console import Reporter
from dreambooth_trainer.sampling.prompt_check import long_prompts
from dreambooth_trainer.store.folder import JobFolder, atomic_write
from dreambooth_trainer.store.run_record import read_run

RESULT = "result.json"


@dataclass(frozen=True)
class Run:
    """One job of a benchmark, its subjects, the digests of its base model and of its adapter, and its folder.

    Attributes:
        adapter_digest: of the image-prompt adapter; empty without one.
    """

    subjects: Case
    setting: Variant
    seed: int
    job: DreamBoothJob
    base_digest: str
    adapter_digest: str
    root: Path

    @property
    def name(self) -> str:
        return case_name(self.subjects)

    @property
    def folder(self) -> JobFolder:
        return JobFolder(self.root / "job")

    @property
    def variant(self) -> str:
        """Name of what the benchmark compares."""
        return self.setting.variant

    @property
    def title(self) -> str:
        return f"{self.name}, {self.variant}, seed {self.seed}"

    def key(self) -> str:
        """Fingerprint of the job, its models and its images."""
        first, *others = (_digests(subject.folder) for subject in self.subjects)
        key = {"job": self.job.model_dump(mode="json"), "base": self.base_digest, "files": first}
        if self.adapter_digest:
            key["adapter"] = self.adapter_digest
        return fingerprint({**key, "others": list[JsonValue](others)} if others else key)

    def result(self) -> RunResult | None:
        """The stored result; None if the job has not finished, or was another one."""
        try:
            result = RunResult.model_validate_json((self.root / RESULT).read_text())
        except (FileNotFoundError, ValidationError):
            return None
        return result if result.key == self.key() else None


def _digests(folder: Path) -> list[JsonValue]:
    """The files of a folder that a job reads, with their digests."""
    return [
        [str(path.relative_to(folder)), hashlib.sha256(path.read_bytes()).hexdigest()]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and all(map(is_visible, path.relative_to(folder).parts)) and _is_read(path.name)
    ]


def _is_read(name: str) -> bool:
    """Whether a job reads a file of its folder of images."""
    return is_candidate(name) or name == METADATA or name.lower().endswith(CAPTION_SUFFIX)


def make_runs(
    cases: Sequence[Case], variants: Sequence[Variant], seeds: int, base: str, sets: Sequence[str], out: Path
) -> list[Run]:
    """All jobs, so ordered that an interrupted benchmark has the same seeds of as many cases as possible.

    Args:
        cases: the subjects of each job.
        sets: overrides. A method gets those that apply to it, and those that apply to none.

    Raises:
        UserError: with the issues of all jobs, each once.
    """
    jobs: list[tuple[Case, Variant, int, DreamBoothJob]] = []
    issues: dict[str, ValidationIssue] = {}
    subjects = [subject for case in cases for subject in case]
    methods = {variant.method for variant in variants}
    for seed, case, variant in itertools.product(range(seeds), cases, variants):
        own = [
            text for text in sets if _applies(text, variant.method) or not any(_applies(text, name) for name in methods)
        ]
        try:
            varied = tuple(vary(subject, variant, subjects, out / "photos") for subject in case)
            jobs.append((varied, variant, seed, make_job(varied, variant, seed, base, own)))
        except UserError as error:
            issues |= {str(issue): issue for issue in error.issues}
    if issues:
        raise UserError(list(issues.values()))
    digest = base_digest(pinned(model_ref(jobs[0][-1])))
    adapters = {variant.method: _adapter_digest(job) for _, variant, _, job in jobs[: len(variants)]}
    return [
        Run(case, _named(variant, job), seed, job, digest, adapters[variant.method], _folder(out, case, variant, seed))
        for case, variant, seed, job in jobs
    ]


def _named(variant: Variant, job: DreamBoothJob) -> Variant:
    """The variant with a mode that an override sets, so that its row is not that of the default."""
    return variant.model_copy(update={"mode": job.spec.prior_preservation.mode})


def _folder(out: Path, case: Case, variant: Variant, seed: int) -> Path:
    return (out / "jobs" / case_name(case) / f"{variant.slug}-{seed}").resolve()


def _adapter_digest(job: DreamBoothJob) -> str:
    """The digest of the image-prompt adapter or the HyperNetwork of a job; empty without both."""
    if network := job.spec.training.hyper_network:
        return network_digest(pinned_network(network))
    model_id = model_ref(job).id
    prompts = plan_image_prompts(job.spec.training, model_defaults(model_id), model_id)
    return "" if prompts is None else adapter_digest(pinned_adapter(prompts.adapter))


def _applies(text: str, method: str) -> bool:
    """Whether a method has the field that an override sets."""
    section, _, rest = text.partition("=")[0].strip().removeprefix("spec.").partition(".")
    field, traits = rest.partition(".")[0], METHODS[method]
    if section == "priorPreservation":
        own = any(field == to_camel(name) for name in ("mode", *MODE_MEMBERS))
        return traits.changes_weights or not own  # the class prompt is that of the evaluation as well
    if section != "training":
        return True
    if any(field == to_camel(name) for name in MEMBERS):
        return any(field == to_camel(name) for name in traits.members)
    return traits.trains or all(field != to_camel(name) for name in SETTINGS_OF_TRAINING)


def check_runs(runs: Sequence[Run], prompts: Callable[[Plan], Sequence[str]]) -> None:
    """Plan one job of each case and of each variant, so that no error is found after hours.

    Args:
        prompts: of a plan, those that its model is measured with.

    Raises:
        UserError: with the issues of all of them; each names its job.
    """
    from dreambooth_trainer.runner import prepare_job

    by_name = {(run.name, run.setting.class_noun): run for run in reversed(runs)}
    by_variant = {run.variant: run for run in reversed(runs)}
    issues: list[ValidationIssue] = []
    for run in {run.root: run for run in (*by_name.values(), *by_variant.values())}.values():
        try:
            prepared = prepare_job(run.job)
            plan = prepared.plan
            prepare_subjects(prepared.images, plan.spec, plan.resolution)
            measured = [(f"spec.evaluation.prompts[{index}]", prompt) for index, prompt in enumerate(prompts(plan))]
            found = long_prompts(plan, config_folder(plan.model), measured)
        except UserError as error:
            found = error.issues
        issues += [replace(issue, source=issue.source or run.title) for issue in found]
    if issues:
        raise UserError(issues)


def run_all(
    benchmark: Benchmark,
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
        check_runs(runs, benchmark.prompts)
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
            seconds = time.monotonic() - start
            context = Context(
                prepared.plan, run.folder, prepared.images, str(store.resolve()), read_run(run.folder).keys, pool
            )
            result = collect_result(
                run.key(), run.name, run.setting, context, records, benchmark.measure(context), seconds
            )
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
