"""Loads the runtime of a job from a file, to plan for a cluster."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import BaseModel

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.localruntime import LocalDreamBoothRuntime, LocalRuntimeSpec
from dreambooth_api.runtime import DreamBoothRuntime, RuntimeSpec
from dreambooth_api.runtimeref import LOCAL_RUNTIME_KIND, RUNTIME_KIND, RuntimeKind
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import read_text, without_nulls
from dreambooth_trainer.jobfile.yamltext import Document, read_documents
from dreambooth_trainer.jobfile.yamltext import Path as KeyPath

M = TypeVar("M", bound=BaseModel)


def load_runtime(path: Path) -> tuple[RuntimeSpec, LocalRuntimeSpec | None]:
    """Load and validate the runtime in a file: a DreamBoothRuntime, and a LocalDreamBoothRuntime if it has that too.

    Raises:
        UserError: with all issues of the file.
    """
    documents = read_documents(read_text(path), path.name)
    issues: list[ValidationIssue] = []
    local = _read(documents, LOCAL_RUNTIME_KIND, LocalDreamBoothRuntime, path, issues)
    runtimes = _read(documents, RUNTIME_KIND, DreamBoothRuntime, path, issues)
    if issues:
        raise UserError(issues)
    if len(local) > 1:
        raise _miscounted(path, LOCAL_RUNTIME_KIND, len(local))
    if len(runtimes) != 1:
        raise _miscounted(path, RUNTIME_KIND, len(runtimes))
    if local and local[0].spec.parent != runtimes[0].metadata.name:
        rule = f"is not the {RUNTIME_KIND} of the file, {runtimes[0].metadata.name!r}"
        remedy = f"add the parent to the file, as a document of its own: kubectl get dbr {local[0].spec.parent} -o yaml"
        raise UserError(ValidationIssue(f"spec.parent ({path.name})", local[0].spec.parent, rule, remedy))
    return runtimes[0].spec, local[0].spec if local else None


def _read(
    documents: list[Document], kind: RuntimeKind, model: type[M], path: Path, issues: list[ValidationIssue]
) -> list[M]:
    """The documents of a kind. Issues of those that are not valid are added to `issues`."""
    found: list[M] = []
    for document in documents:
        if isinstance(document.value, dict) and document.value.get("kind") == kind:
            try:
                found.append(_validate(document, model, path))
            except UserError as error:
                issues += error.issues
    return found


def _miscounted(path: Path, kind: RuntimeKind, count: int) -> UserError:
    return UserError(ValidationIssue(path.name, None, f"contains {count} {kind}s", f"pass a file with one {kind}"))


def _validate(document: Document, model: type[M], path: Path) -> M:
    lines = document.lines

    def source(key_path: KeyPath) -> str:
        known = (key_path[:length] for length in range(len(key_path), -1, -1))
        return next((f"{path.name}, line {lines[prefix]}" for prefix in known if prefix in lines), path.name)

    return validate(model, without_nulls(document.value, model), source, path.name)
