"""The jobs of a benchmark, each with one subject or two."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_trainer.benchmark.dataset import FILE, DatasetSubject
from dreambooth_trainer.benchmark.variants import Variant
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import resolve_folders
from dreambooth_trainer.jobfile.overrides import apply_sets

MAX_NAME = 63
"""Characters in the name of a job: those of a DNS label."""
Case = tuple[DatasetSubject, ...]
"""The subjects of a job: one, or two of different classes."""


def case_name(subjects: Case) -> str:
    """Name of a subject, or of a pair: "dog6+robot_toy"."""
    return "+".join(subject.name for subject in subjects)


def make_job(
    subjects: Case,
    variant: Variant,
    seed: int,
    base: str,
    sets: Sequence[str],
) -> DreamBoothJob:
    """The job of one subject or of two, with overrides.

    Args:
        subjects: with the class nouns and the images of the variant.

    Raises:
        UserError: the subjects, the base model or an override is invalid.
    """
    words = "-".join(filter(None, (case_name(subjects), variant.slug, str(seed))))
    name = _job_name("".join(c if c.isalnum() else "-" for c in words.lower()))
    spec: dict[str, JsonValue] = {
        "model": {"id": base},
        **_subject_fields(subjects),
        "training": {"method": variant.method, "seed": seed},
        "evaluation": {"prompts": list[JsonValue](_common_prompts(subjects))},
    }
    compared = {"mode": variant.mode, "numClassImages": variant.class_images}
    if preservation := {name: value for name, value in compared.items() if value is not None}:
        spec["priorPreservation"] = preservation
    if variant.method == "Full":
        spec["output"] = {"formats": ["diffusers"]}
    document = {"apiVersion": API_VERSION, "kind": KIND, "metadata": {"name": name}, "spec": spec}
    value, origins, issues = apply_sets(document, sets)

    try:
        job = validate(DreamBoothJob, value, lambda path: origins.get(path, ""), case_name(subjects))
    except UserError as error:
        raise UserError([*issues, *error.issues]) from error
    given, prior = job.spec, job.spec.prior_preservation
    own = [given.training.method, given.training.seed, given.evaluation.enabled, given.output.uri]
    own += [prior.mode, prior.num_class_images]
    mode, class_images = variant.mode or prior.mode, variant.class_images or prior.num_class_images
    if own != [variant.method, seed, True, None, mode, class_images]:
        rule = "sets training.method, training.seed, evaluation.enabled or output.uri, or with --modes or "
        rule += "--class-images priorPreservation.mode or numClassImages, which the benchmark sets itself"
        issues.append(ValidationIssue("--set", None, rule, "leave it out; see --methods, --modes and --seeds"))
    used = [(subject.class_, subject.images.uri) for subject in given.all_subjects]
    if not variant.usual and used != [(subject.class_, str(subject.folder)) for subject in subjects]:
        rule = "sets the class or the images of the subject, which --class-nouns or --images set"
        issues.append(ValidationIssue("--set", None, rule, "leave it out"))
    if not given.evaluation.prompts:
        rule = f"has no prompt for both an object and a live subject, as {case_name(subjects)} need"
        remedy = "list some of the prompts in both lists, or set them with --set evaluation.prompts"
        issues.append(ValidationIssue(FILE, None, rule, remedy))
    if issues:
        raise UserError(issues)
    return resolve_folders(job, Path.cwd())


def _job_name(name: str) -> str:
    """The name, shortened if needed; a digest keeps it unique."""
    if len(name) <= MAX_NAME:
        return name
    return f"{name[: MAX_NAME - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def _subject_fields(subjects: Case) -> dict[str, JsonValue]:
    """The subjects in a spec. All but the first, whose identifier is the default, get another rare token."""
    first, *others = ({"class": s.class_, "images": {"uri": str(s.folder)}} for s in subjects)
    if not others:
        return {"subject": first}
    return {"subjects": [first, *({**other, "identifier": "auto"} for other in others)]}


def _common_prompts(subjects: Case) -> list[str]:
    """The prompts that all subjects have, which differ for objects and live subjects. There may be none."""
    first, *others = (subject.prompts for subject in subjects)
    return [prompt for prompt in first if all(prompt in own for own in others)]
