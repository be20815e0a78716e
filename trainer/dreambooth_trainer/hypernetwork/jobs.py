"""Reads finished LoRA jobs, which a HyperNetwork is trained on."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from PIL import Image

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.model import public_name
from dreambooth_trainer.families.ip_adapter import adapter_files
from dreambooth_trainer.families.registry import local_folder
from dreambooth_trainer.hypernetwork.check import target_layers
from dreambooth_trainer.hypernetwork.denoising import Denoising
from dreambooth_trainer.hypernetwork.files import LayerShape, NetworkConfig, encoder_digest, encoder_of
from dreambooth_trainer.hypernetwork.predict import image_features
from dreambooth_trainer.hypernetwork.train import Example
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder
from dreambooth_trainer.store.owner import MANIFEST
from dreambooth_trainer.store.published import ModelManifest
from dreambooth_trainer.store.run_record import read_run
from dreambooth_trainer.training.cache import load_data

OPTION = "JOBS"


@dataclass(frozen=True)
class FinishedJob:
    """A finished LoRA job. `common` is what all jobs of a network have in common."""

    folder: JobFolder
    plan: Plan
    base_digest: str

    @property
    def common(self) -> dict[str, object]:
        adapters = self.plan.spec.training.adapters
        return {
            "base model": (self.plan.model.id, self.base_digest[:12]),
            "rank": adapters.rank,
            "alpha": adapters.alpha or adapters.rank,
            "identifier": self.plan.subjects[0].identifier,
        }


def read_jobs(paths: Sequence[Path]) -> list[FinishedJob]:
    """The jobs in some folders.

    Args:
        paths: each the folder of a job, or a folder with folders of jobs in it.

    Raises:
        UserError: jobs cannot be used together; with all issues of all jobs.
    """
    issues: list[ValidationIssue] = []
    jobs: list[FinishedJob] = []
    found: dict[Path, None] = {}
    for path in paths:
        folders = sorted({record.parents[1].resolve() for record in path.rglob("work/run.json")})
        if not folders:
            remedy = "pass folders that dreambooth run has written, or a folder with such folders in it"
            issues.append(ValidationIssue(OPTION, str(path), "contains no job", remedy))
        found |= dict.fromkeys(folders)
    for folder in found:
        try:
            jobs.append(_read_job(JobFolder(folder)))
        except UserError as error:
            issues += error.issues
    for job in jobs[1:]:
        first, own = jobs[0].common, job.common
        different = [name for name in first if own[name] != first[name]]
        for name in different:
            rule = f"has the {name} {_shown(own[name])}, {jobs[0].folder.root.name} has {_shown(first[name])}"
            issues.append(ValidationIssue(OPTION, str(job.folder.root), rule, f"leave out jobs with another {name}"))
    if issues:
        raise UserError(issues)
    return jobs


def _shown(value: object) -> str:
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)  # pyright: ignore[reportUnknownArgumentType, reportUnknownVariableType]


def _read_job(folder: JobFolder) -> FinishedJob:
    """A job that can be used. Raises an error with all reasons why it cannot."""
    plan, where = read_run(folder).plan, str(folder.root)
    faults: list[tuple[str, str]] = []
    if plan.spec.training.method != "LoRA":
        faults.append((f"has method {plan.spec.training.method}, not LoRA", "leave it out"))
    if plan.train_text_encoder:
        faults.append(("has adapters of text encoders", "leave it out, or train it without textEncoder.train"))
    if len(plan.subjects) > 1:
        faults.append((f"has {len(plan.subjects)} subjects", "leave it out: a network predicts one subject"))
    if plan.super_resolution is not None:
        faults.append(("has a model of two stages", "leave it out: a network predicts one stage"))
    if not folder.prepared_of(0):
        faults.append(("has no prepared images", "run the job again"))
    if not folder.latents.exists():
        faults.append(("has no encoded images", "run the job again, and keep its folder work"))
    if not (folder.model / MANIFEST).exists():
        faults.append(("has no published model", "complete the job"))
    if faults:
        raise UserError([ValidationIssue(OPTION, where, rule, remedy) for rule, remedy in faults])
    manifest = ModelManifest.model_validate_json((folder.model / MANIFEST).read_text())
    return FinishedJob(folder, plan, manifest.base_digest)


def examples_of(jobs: Sequence[FinishedJob]) -> list[Example]:
    """The jobs as training data. Encodes their images."""
    encoder = adapter_files(encoder_of(jobs[0].plan.model.id)).encoder
    return [_example(job, encoder) for job in jobs]


def _example(job: FinishedJob, encoder: Path) -> Example:
    # Jobs of a benchmark have the same first image if their subject is the same.
    images = job.folder.prepared_of(0)
    subject, digest = (hashlib.sha256(path.read_bytes()).hexdigest() for path in (images[0], job.folder.latents))
    return Example(image_features(encoder, [Image.open(path) for path in images]), subject, digest)


def layers_of(jobs: Sequence[FinishedJob]) -> dict[str, LayerShape]:
    """The layers that get adapters, which are those of all jobs: they have the same base model."""
    return target_layers(local_folder(jobs[0].plan.model), jobs[0].plan)


def denoising_of(jobs: Sequence[FinishedJob], layers: dict[str, LayerShape]) -> Denoising:
    """The denoising loss of the jobs. It reads their encoded images when they are needed."""
    return Denoising(jobs[0].plan, layers, [partial(load_data, job.folder.latents) for job in jobs])


def config_of(plan: Plan, base_digest: str, layers: dict[str, LayerShape], features: int) -> NetworkConfig:
    """The configuration of a network for jobs with a plan like this one. It has been trained on none yet."""
    adapters = plan.spec.training.adapters
    return NetworkConfig(
        base_model=public_name(plan.model.id),
        base_digest=base_digest,
        rank=adapters.rank,
        alpha=adapters.alpha or adapters.rank,
        identifier=plan.subjects[0].identifier,
        encoder_digest=encoder_digest(adapter_files(encoder_of(plan.model.id)).encoder),
        features=features,
        layers=layers,
        jobs=0,
    )
