"""Loads job files with overrides, and writes jobs as YAML."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import JsonValue

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.imageprompt import ImagePrompt
from dreambooth_api.job import API_VERSION, KIND, DreamBoothJob
from dreambooth_api.model import BaseModelRef, public_name
from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND, RUNTIME_KIND
from dreambooth_api.uris import ABSOLUTE_URI
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.overrides import Sets, apply_sets
from dreambooth_trainer.jobfile.schema import closest_match, item_of, keys_of, model_of
from dreambooth_trainer.jobfile.yamltext import Document, Dumper, read_documents
from dreambooth_trainer.jobfile.yamltext import Path as KeyPath

log = logging.getLogger(__name__)

_SCHEME = re.compile(ABSOLUTE_URI)


def load_job(path: Path, sets: Sets = (), *, sha256: str = "") -> DreamBoothJob:
    """Load and validate a job file.

    Args:
        path: the job file. Relative `uri`s are resolved against its folder.
        sets: overrides such as `training.steps=200`: a path below `spec`, and a YAML value.
        sha256: the expected digest of the file; empty to accept any file.

    Raises:
        UserError: with all issues of the file and of the overrides.
        TransientError: the file has another digest.
    """
    text = read_text(path)
    if sha256 and hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise TransientError(
            f"{path} is not the job file that the operator wrote: somebody else created its ConfigMap, or the runtime "
            "changed meanwhile; the operator retries under another name"
        )
    document = select_job(read_documents(text, path.name), path.name)
    return build_job(document, sets, path.name, path.absolute().parent)


def build_job(document: Document, sets: Sets, name: str, base: Path) -> DreamBoothJob:
    """Validate a job with overrides.

    Args:
        name: of the document, for issues that concern it as a whole.
        base: folder against which relative `uri`s are resolved.

    Raises:
        UserError: with all issues of the document and of the overrides.
    """
    value = without_nulls(document.value, DreamBoothJob)
    value, origins, issues = apply_sets(value, sets)

    def source(key_path: KeyPath) -> str:
        if key_path not in document.lines:
            inner = next((origin for path, origin in origins.items() if path[: len(key_path)] == key_path), None)
            if inner is not None:
                return inner
        for length in range(len(key_path), -1, -1):
            prefix = key_path[:length]
            if prefix in origins:
                return origins[prefix]
            if prefix in document.lines:
                return f"line {document.lines[prefix]}"
        return ""

    try:
        job = validate(DreamBoothJob, value, source, name)
    except UserError as error:
        raise UserError([*issues, *error.issues]) from error
    if issues:
        raise UserError(issues)
    return resolve_folders(job, base)


# Neither where the photos and the job's data are, nor captions of photos, nor what belongs to the cluster.
_SUBJECT: Any = {"class_", "identifier", "instance_prompt", "class_prompt"}
_PUBLIC: Any = {
    "api_version": True,
    "kind": True,
    "metadata": {"name"},
    "spec": {
        "model": True,
        "subject": _SUBJECT,
        "subjects": {"__all__": _SUBJECT},
        "prior_preservation": True,
        "training": True,
        "evaluation": True,
        "output": {"formats"},
    },
}
_PRIVATE: Any = {"spec": {"prior_preservation": {"images"}}}


# Fields of models and encoders: a Hub ID, or the path of a local folder, which `resolve_folders` made absolute.
_MODELS = {"id", "dino", "clip"}


def dump_job(job: DreamBoothJob, *, public: bool = False) -> str:
    """A job as YAML, without fields that equal their defaults.

    Args:
        public: only what was learned, how, and with which settings. Not where the photos and the job's data are; models
            in local folders have the names of these folders.
    """
    included, excluded = (_PUBLIC, _PRIVATE) if public else (None, None)
    value = job.model_dump(
        mode="json", by_alias=True, include=included, exclude=excluded, exclude_defaults=True, exclude_none=True
    )
    if public:
        spec: Any = value["spec"]
        model, encoders = spec.get("model", {}), spec.get("evaluation", {}).get("encoders", {})
        adapter = spec.get("training", {}).get("imagePrompt", {}).get("adapter", {})
        network = spec.get("training", {}).get("hyperNetwork", {})
        for owner in (model, model.get("superResolution", {}), adapter, network, encoders):
            owner |= {name: public_name(owner[name]) for name in owner.keys() & _MODELS}
    return yaml.dump(value, Dumper=Dumper, sort_keys=False, allow_unicode=True, width=110)


def select_job(documents: Sequence[Document], name: str) -> Document:
    """Select the only job among the documents of a file. Logs a warning for each other document.

    Raises:
        UserError: there is not exactly one job.
    """
    if not documents:
        raise UserError(
            ValidationIssue(name, None, "is empty", f"write a job: apiVersion: {API_VERSION}, kind: {KIND}, ...")
        )
    jobs = [document for document in documents if _kind(document) == KIND]
    if len(jobs) == 1:
        for other in documents:
            if other is not jobs[0]:
                log.warning("%s: %s is ignored; only the %s is used", name, _title(other), KIND)
        return jobs[0]
    if not jobs and len(documents) == 1:
        _check_kind(documents[0], name)
        return documents[0]
    titles = ", ".join(_title(document) for document in documents)
    if not jobs:
        raise UserError(ValidationIssue(name, None, f"contains no {KIND}, but {titles}", f"set kind: {KIND}"))
    rule = f"contains {len(jobs)} {KIND}s: {titles}"
    raise UserError(ValidationIssue(name, None, rule, "write each job to a separate file"))


def resolve_folders(job: DreamBoothJob, base: Path) -> DreamBoothJob:
    """Resolve the relative local folders of a job against `base`. URLs, builtin: and Hub IDs are not changed."""
    output, evaluation, model = job.spec.output, job.spec.evaluation, job.spec.model
    prior = job.spec.prior_preservation
    own = prior.images and prior.images.model_copy(update={"uri": _absolute(prior.images.uri, base)})
    sources = [subject.images for subject in job.spec.all_subjects]
    images = [{"images": source.model_copy(update={"uri": _absolute(source.uri, base)})} for source in sources]
    encoders = evaluation.encoders.model_copy(
        update={"dino": _model(evaluation.encoders.dino, base), "clip": _model(evaluation.encoders.clip, base)}
    )
    prompts, network = job.spec.training.image_prompt, job.spec.training.hyper_network
    spec = job.spec.update_subjects(images).model_copy(
        update={
            "prior_preservation": prior.model_copy(update={"images": own}),
            "output": output.model_copy(update={"uri": _absolute(output.uri, base)}),
            "evaluation": evaluation.model_copy(update={"encoders": encoders}),
            "model": model and _with_absolute_paths(model, base),
            "training": job.spec.training.model_copy(
                update={
                    "image_prompt": prompts and _with_absolute_adapter(prompts, base),
                    "hyper_network": network and network.model_copy(update={"id": _model(network.id, base)}),
                }
            ),
        }
    )
    return job.model_copy(update={"spec": spec})


def _absolute(uri: str | None, base: Path) -> str | None:
    if uri is None or _SCHEME.match(uri):
        return uri
    # Unlike Path.expanduser, this keeps a tilde where there is no home folder.
    return str((base / os.path.expanduser(uri)).absolute())  # noqa: PTH111


def _with_absolute_paths(model: BaseModelRef, base: Path) -> BaseModelRef:
    second = model.super_resolution
    second = second and second.model_copy(update={"id": _model(second.id, base)})
    return model.model_copy(update={"id": _model(model.id, base), "super_resolution": second})


def _with_absolute_adapter(prompts: ImagePrompt, base: Path) -> ImagePrompt:
    adapter = prompts.adapter
    return prompts.model_copy(
        update={"adapter": adapter and adapter.model_copy(update={"id": _model(adapter.id, base)})}
    )


def _model(model_id: str | None, base: Path) -> str | None:
    """An absolute path if the model is a folder. A Hub ID also looks like a relative path."""
    folder = _absolute(model_id, base)
    if model_id is None or folder is None:
        return model_id
    return folder if model_id.startswith((".", "~")) or os.path.isdir(folder) else model_id  # noqa: PTH112


def read_text(path: Path) -> str:
    """The content of a file.

    Raises:
        UserError: it cannot be read, or is not UTF-8.
    """
    remedy = "pass the path of a job file"
    try:
        return path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        others = [file.name for file in path.parent.glob("*.y*ml")] if path.parent.is_dir() else []
        suggestion = closest_match(path.name, others)
        remedy = f"did you mean {path.parent / suggestion}?" if suggestion else remedy
        raise UserError(ValidationIssue(str(path), None, "does not exist", remedy)) from error
    except IsADirectoryError as error:
        raise UserError(ValidationIssue(str(path), None, "is a folder", f"{remedy} in it")) from error
    except UnicodeDecodeError as error:
        rule = f"is not UTF-8 text: byte {error.start} is 0x{error.object[error.start]:02x}"
        raise UserError(ValidationIssue(str(path), None, rule, "save the file as UTF-8")) from error
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise UserError(ValidationIssue(str(path), None, f"cannot be read: {reason}", remedy)) from error


def _kind(document: Document) -> str | None:
    kind = document.value.get("kind") if isinstance(document.value, dict) else None
    return kind if isinstance(kind, str) else None


def _title(document: Document) -> str:
    return f"{_kind(document) or 'a document without a kind'} (line {document.line})"


def _check_kind(document: Document, name: str) -> None:
    """Reject another kind. A missing or misspelled kind is reported by validation."""
    kind = _kind(document)
    is_runtime = kind in (RUNTIME_KIND, LOCAL_RUNTIME_KIND)
    if kind is None or (closest_match(kind, [KIND]) and not is_runtime):
        return
    rule = f"is a {kind}, not a {KIND}"
    remedy = f"pass a file with kind: {KIND}"
    if is_runtime:
        remedy += "; apply a runtime to a cluster with kubectl"
    raise UserError(ValidationIssue(name, None, rule, remedy))


def without_nulls(value: JsonValue, annotation: Any) -> JsonValue:
    """Drop keys without a value where there is a schema, as the API server does."""
    if isinstance(value, list):
        return [without_nulls(item, item_of(annotation)) for item in value]
    model = model_of(annotation)
    if model is None or not isinstance(value, dict):
        return value
    fields = keys_of(model)
    return {
        key: without_nulls(item, fields[key].annotation if key in fields else None)
        for key, item in value.items()
        if item is not None or (key not in fields and model.model_config.get("extra") != "allow")
    }
