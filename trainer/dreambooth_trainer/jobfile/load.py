"""Reading, overriding, checking and writing a job file."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path

import yaml
from pydantic import BaseModel, JsonValue

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.uris import ABSOLUTE_URI
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.overrides import apply_sets
from dreambooth_trainer.jobfile.schema import keys_of, model_in, nearest
from dreambooth_trainer.jobfile.yamltext import Document, Dumper, read_documents
from dreambooth_trainer.jobfile.yamltext import Path as KeyPath

log = logging.getLogger(__name__)

_SCHEME = re.compile(ABSOLUTE_URI)


def load_job(path: Path, sets: Sequence[str] = ()) -> DreamBoothJob:
    """The job that a YAML file describes, with `--set` overrides and its relative folders made absolute.

    Args:
        path: the job file; relative `uri`s in it are relative to its folder.
        sets: `training.steps=200` and the like; keys below `spec`, values are YAML.

    Raises:
        UserError: everything that is wrong with it, a fault each.
    """
    document = pick_job(read_documents(_text(path), path.name), path.name)
    value = _without_nulls(document.value, DreamBoothJob)
    value, origins, issues = apply_sets(value, sets)

    def source(at: KeyPath) -> str:
        for length in range(len(at), -1, -1):
            if at[:length] in origins:
                return f"--set {origins[at[:length]]}"
            if at[:length] in document.lines:
                return f"line {document.lines[at[:length]]}"
        return ""

    try:
        job = validate(DreamBoothJob, value, source, path.name)
    except UserError as error:
        raise UserError([*issues, *error.issues]) from error
    if issues:
        raise UserError(issues)
    return with_absolute_folders(job, path.absolute().parent)


def dump_job(job: DreamBoothJob) -> str:
    """The job as a user would write it: what equals a default is left out."""
    value = job.model_dump(mode="json", by_alias=True, exclude_defaults=True, exclude_none=True)
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def pick_job(documents: Sequence[Document], name: str) -> Document:
    """The one job among the documents of a file; the others are told about.

    Raises:
        UserError: there is none, or there are several.
    """
    if not documents:
        raise UserError(
            ValidationIssue(name, None, "is empty", f"write a job: apiVersion: {API_VERSION}, kind: {KIND}, ...")
        )
    jobs = [document for document in documents if _kind(document) == KIND]
    if len(jobs) == 1:
        for other in documents:
            if other is not jobs[0]:
                log.warning("%s: %s is not read here; only the %s is", name, _title(other), KIND)
        return jobs[0]
    if not jobs and len(documents) == 1:
        _refuse_other_kind(documents[0], name)
        return documents[0]
    found = ", ".join(_title(document) for document in documents)
    if not jobs:
        raise UserError(ValidationIssue(name, None, f"holds no {KIND}, but {found}", f"write kind: {KIND}"))
    raise UserError(ValidationIssue(name, None, f"holds {len(jobs)} {KIND}s: {found}", "give each a file of its own"))


def with_absolute_folders(job: DreamBoothJob, base: Path) -> DreamBoothJob:
    """Local folders of images and output, made absolute from `base`; s3://, gs:// and builtin: stay."""
    subject, output = job.spec.subject, job.spec.output
    images = subject.images.model_copy(update={"uri": _absolute(subject.images.uri, base)})
    spec = job.spec.model_copy(
        update={
            "subject": subject.model_copy(update={"images": images}),
            "output": output.model_copy(update={"uri": _absolute(output.uri, base)}),
        }
    )
    return job.model_copy(update={"spec": spec})


def _absolute(uri: str | None, base: Path) -> str | None:
    if uri is None or _SCHEME.match(uri):
        return uri
    return str((base / Path(uri).expanduser()).absolute())


def _text(path: Path) -> str:
    remedy = "give the path of a job file"
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        near = nearest(path.name, [one.name for one in path.parent.glob("*.y*ml")]) if path.parent.is_dir() else None
        meant = f"did you mean {path.parent / near}?" if near else remedy
        raise UserError(ValidationIssue(str(path), None, "does not exist", meant)) from error
    except IsADirectoryError as error:
        raise UserError(ValidationIssue(str(path), None, "is a folder", f"{remedy} in it")) from error
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise UserError(ValidationIssue(str(path), None, rule, "save it as UTF-8, or give the YAML file")) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(ValidationIssue(str(path), None, f"cannot be read: {reason}", remedy)) from error


def _kind(document: Document) -> str | None:
    kind = document.value.get("kind") if isinstance(document.value, dict) else None
    return kind if isinstance(kind, str) else None


def _title(document: Document) -> str:
    return f"{_kind(document) or 'a document without a kind'} (line {document.line})"


def _refuse_other_kind(document: Document, name: str) -> None:
    """A misspelt kind is left to validation; a wholly other one is told as such."""
    kind = _kind(document)
    if kind is None or (nearest(kind, [KIND]) and kind != "DreamBoothRuntime"):
        return
    rule = f"is a {kind}, not a {KIND}"
    remedy = f"give the file that says kind: {KIND}"
    if kind == "DreamBoothRuntime":
        remedy += "; a runtime is applied to a cluster with kubectl"
    raise UserError(ValidationIssue(name, None, rule, remedy))


def _without_nulls(value: JsonValue, model: type[BaseModel] | None) -> JsonValue:
    """Drop `key:` without a value where the models rule, as the API server does; free-form parts stay as they are."""
    if model is None or not isinstance(value, dict):
        return value
    fields = keys_of(model)
    return {
        key: _without_nulls(item, model_in(fields[key].annotation) if key in fields else None)
        for key, item in value.items()
        if item is not None or (key not in fields and model.model_config.get("extra") != "allow")
    }
