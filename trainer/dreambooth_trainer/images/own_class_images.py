"""Reads and checks the class images that a job provides: `priorPreservation.images`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import JobSpec
from dreambooth_trainer.images.decode import prepare_image
from dreambooth_trainer.images.sources import RawImage, read_images

_FIELD = "spec.priorPreservation.images"


def read_class_images(spec: JobSpec) -> list[RawImage]:
    """The class images of a job in the order of their names; empty if it provides none, or does not use any.

    Raises:
        UserError: the folder cannot be read, is empty, or is too large.
        TransientError: an object store failed.
    """
    source = spec.prior_preservation.images
    if source is None or not spec.uses_class_images:
        return []
    try:
        return read_images(source, captions=False).images
    except UserError as error:
        raise UserError([_located(issue) for issue in error.issues]) from error


def check_class_images(images: Sequence[RawImage], resolution: int) -> None:
    """Decode all images.

    Raises:
        UserError: with the issues of all that cannot be used.
    """
    issues: list[ValidationIssue] = []
    for raw in images:
        try:
            prepare_image(raw, resolution)
        except UserError as error:
            issues += [_located(issue) for issue in error.issues]
    if issues:
        raise UserError(issues)


def _located(issue: ValidationIssue) -> ValidationIssue:
    if issue.path.startswith("spec.subject.images"):
        return replace(issue, path=issue.path.replace("spec.subject.images", _FIELD, 1))
    return replace(issue, path=f'{_FIELD}["{issue.path}"]')
