"""The jobs of a benchmark: every subject or pair with every method, mode of preservation and seed."""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import JsonValue, ValidationError
from pydantic.alias_generators import to_camel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import CAPTION_SUFFIX, METADATA, is_candidate, is_visible
from dreambooth_api.job import DreamBoothJob
from dreambooth_api.methods import MEMBERS, METHODS
from dreambooth_api.preservation import MODE_MEMBERS
from dreambooth_api.training import SETTINGS_OF_TRAINING
from dreambooth_trainer.benchmark.jobs import Case, case_name, make_job
from dreambooth_trainer.benchmark.results import RunResult
from dreambooth_trainer.benchmark.variants import Variant, vary
from dreambooth_trainer.families.ip_adapter import adapter_digest, pinned_adapter
from dreambooth_trainer.families.registry import base_digest, pinned
from dreambooth_trainer.hypernetwork.files import network_digest, pinned_network
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.image_prompts import plan_image_prompts
from dreambooth_trainer.planning.plan import fingerprint, model_ref
from dreambooth_trainer.store.folder import JobFolder

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
        if references := [_digests(subject.references) for subject in self.subjects if subject.references]:
            key["references"] = list[JsonValue](references)
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
