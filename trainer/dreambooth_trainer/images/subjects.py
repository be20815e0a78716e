"""Reads and prepares the images of all subjects of a job. Issues and warnings name the subject that they concern."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeVar

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec
from dreambooth_api.subject import Subject
from dreambooth_trainer.images.captions import with_caption_files
from dreambooth_trainer.images.prepare import PreparedImages, prepare_images
from dreambooth_trainer.images.sources import RawImage, RawImages, read_images

T = TypeVar("T")
# Path of a single subject in the messages of `sources` and `prepare`.
_SINGLE = "spec.subject"


def read_subjects(spec: JobSpec) -> tuple[JobSpec, list[tuple[RawImage, ...]], list[str]]:
    """The spec with the captions in text files beside the images, the images of each subject, and warnings.

    Raises:
        UserError: with the issues of all subjects.
        TransientError: an object store failed.
    """
    found: list[RawImages] = each_subject(spec, lambda _, subject: read_images(subject.images))
    spec, warnings = with_captions(spec, found)
    return spec, [tuple(raw.images) for raw in found], warnings


def with_captions(spec: JobSpec, found: Sequence[RawImages | None]) -> tuple[JobSpec, list[str]]:
    """The spec with the captions in text files, and all warnings about the files.

    Args:
        found: files of each subject; None for a subject whose files were not read.
    """
    subjects = [
        with_caption_files(subject, raw.captions, raw.origins) if raw else (subject, list[str]())
        for subject, raw in zip(spec.all_subjects, found, strict=True)
    ]
    warnings = [[] if raw is None else [*raw.warnings, *notes] for raw, (_, notes) in zip(found, subjects, strict=True)]
    changed = spec.update_subjects([{"captions": subject.captions} for subject, _ in subjects])
    return changed, located_warnings(spec, warnings)


def prepare_subjects(
    images: Sequence[Sequence[RawImage]], spec: JobSpec, resolution: int
) -> tuple[list[PreparedImages], list[str]]:
    """The training images of each subject, and the warnings of all subjects.

    Raises:
        UserError: with the issues of all subjects.
    """
    prepared: list[PreparedImages] = each_subject(
        spec, lambda index, subject: prepare_images(images[index], resolution, subject.captions)
    )
    return prepared, located_warnings(spec, [one.warnings for one in prepared])


def each_subject(spec: JobSpec, work: Callable[[int, Subject], T]) -> list[T]:
    """The result of `work(index, subject)` for each subject.

    Raises:
        UserError: with the issues of all subjects.
    """
    results: list[T] = []
    issues: list[ValidationIssue] = []
    for index, (field, subject) in enumerate(zip(spec.subject_fields, spec.all_subjects, strict=True)):
        try:
            results.append(work(index, subject))
        except UserError as error:
            issues += [_located_issue(field, issue) for issue in error.issues]
    if issues:
        raise UserError(issues)
    return results


def located_warnings(spec: JobSpec, warnings: Sequence[Sequence[str]]) -> list[str]:
    """The warnings of each subject in one list, with the path of the subject if there are several."""
    return [
        text if field == _SINGLE else f"{field}: {text.replace(f'{_SINGLE}.', f'{field}.')}"
        for field, texts in zip(spec.subject_fields, warnings, strict=True)
        for text in texts
    ]


def _located_issue(field: str, issue: ValidationIssue) -> ValidationIssue:
    if field == _SINGLE:
        return issue
    # The path of an issue with a single image is its file name.
    below = issue.path.removeprefix(_SINGLE) if issue.path.startswith(_SINGLE) else f'.images["{issue.path}"]'
    return replace(issue, path=f"{field}{below}")
