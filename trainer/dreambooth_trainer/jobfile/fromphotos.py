"""Makes a job from a folder of photos and options, and saves it as a job file."""

from __future__ import annotations

import os
import re
from dataclasses import replace
from pathlib import Path, PurePosixPath

from pydantic import JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import Concept, concept_of, is_candidate, is_visible
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.uris import ABSOLUTE_URI, BUILTIN, is_url
from dreambooth_trainer.jobfile.load import build_job, dump_job, read_text
from dreambooth_trainer.jobfile.overrides import Sets
from dreambooth_trainer.jobfile.yamltext import Document

_HEAD = "# Check: dreambooth plan {name}    Run: dreambooth run {name}\n"


def is_photos(source: str) -> bool:
    """Whether an argument is a source of photos, and not a job file."""
    archive = source.lower().endswith(".zip")
    return is_url(source) or source.startswith(BUILTIN) or archive or Path(source).is_dir()


def job_from_photos(source: str, sets: Sets, name: str | None = None) -> DreamBoothJob:
    """A job with the photos at a folder or URI. Identifier and class can be in the names of kohya's folders.

    Args:
        sets: overrides; one of them sets the class.
        name: name of the job; defaults to the folder's.

    Raises:
        UserError: with all issues.
    """
    spec: dict[str, JsonValue] = _subjects(source)
    value: JsonValue = {
        "apiVersion": API_VERSION,
        "kind": KIND,
        "metadata": {"name": name or default_name(source)},
        "spec": spec,
    }
    try:
        return build_job(Document(value, 1, {}), sets, source, Path.cwd())
    except UserError as error:
        raise UserError([_for_command_line(issue, source) for issue in error.issues]) from error


def default_name(source: str) -> str:
    """A valid name of a job, made of the name of a folder or URI."""
    remote = is_url(source) or source.startswith(BUILTIN)
    last = PurePosixPath(source.partition("?")[0] if remote else str(Path(source).resolve())).name
    return re.sub(r"[^a-z0-9]+", "-", last.lower().removesuffix(".zip"))[:60].strip("-") or "photos"


def _subjects(source: str) -> dict[str, JsonValue]:
    """`subject`, or `subjects` if the folders of kohya's sd-scripts have several identifiers."""
    folders = _concepts(Path(source)) if Path(source).is_dir() else {}
    by_identifier: dict[str, list[str]] = {}
    for folder in folders:
        by_identifier.setdefault(_words(folders[folder])[0], []).append(folder)
    if len(by_identifier) > 1:
        items: list[JsonValue] = [_subject(os.path.join(source, f), [folders[f]]) for f in folders]  # noqa: PTH118
        return {"subjects": items}
    own = concept_of(Path(source).resolve().name) if Path(source).is_dir() else None
    return {"subject": _subject(source, [*folders.values()] or ([own] if own else []))}


def _concepts(folder: Path) -> dict[str, Concept]:
    """The folders of kohya's sd-scripts in a folder without images, as `images.selection` reads them."""
    entries = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    if any(entry.is_file() and is_candidate(entry.name) for entry in entries):
        return {}
    return {entry.name: found for entry in entries if entry.is_dir() and (found := concept_of(entry.name))}


def _subject(uri: str, concepts: list[Concept]) -> dict[str, JsonValue]:
    """A subject with identifier and class of the shortest tokens: of "sks dog" and "sks dog close up", the first."""
    subject: dict[str, JsonValue] = {"images": {"uri": uri}}
    if concepts:
        identifier, noun = _words(min(concepts, key=lambda concept: len(concept.tokens)))
        subject |= {"identifier": identifier, "class": noun} if noun else {"class": identifier}
    return subject


def _words(concept: Concept) -> tuple[str, str]:
    identifier, _, noun = concept.tokens.partition(" ")
    return identifier, noun.strip()


def _for_command_line(issue: ValidationIssue, source: str) -> ValidationIssue:
    if not issue.path.endswith(".class") or issue.rule != "is required":
        return issue
    folder = Path(source)
    job_files = sorted(folder.glob("*.y*ml")) if folder.is_dir() else []
    remedy = "add the class noun of the subject, for example --class dog"
    remedy += f"; or pass a job file: {job_files[0]}" if job_files else ""
    return replace(issue, path="--class", rule=f"is required with the photos in {source}", remedy=remedy)


def save_job(job: DreamBoothJob, path: Path) -> None:
    """Write a job file. Local folders of images are relative to it. A file with the same content is kept.

    Raises:
        UserError: another file exists, or the folder does not.
    """
    base = path.absolute().parent
    sources = [subject.images for subject in job.spec.all_subjects]
    images = [{"images": source.model_copy(update={"uri": _relative(source.uri, base)})} for source in sources]
    prior = job.spec.prior_preservation
    own = prior.images and prior.images.model_copy(update={"uri": _relative(prior.images.uri, base)})
    fields = {"prior_preservation": prior.model_copy(update={"images": own})}
    saved = job.model_copy(update={"spec": job.spec.update_subjects(images).model_copy(update=fields)})
    text = _HEAD.format(name=path.name) + dump_job(saved)
    if path.exists():
        if path.is_file() and read_text(path) == text:
            return
        raise UserError(ValidationIssue("--save", str(path), "exists, and would be overwritten", "use another name"))
    try:
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        rule = f"cannot be written: {error.strerror}"
        raise UserError(ValidationIssue("--save", str(path), rule, "use a file in a folder that exists")) from error


def _relative(uri: str | None, base: Path) -> str | None:
    return uri if uri is None or re.match(ABSOLUTE_URI, uri) else os.path.relpath(uri, base)
