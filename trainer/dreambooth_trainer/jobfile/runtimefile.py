"""Loads a DreamBoothRuntime from a file, to plan for a cluster."""

from __future__ import annotations

from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.runtime import RUNTIME_KIND, DreamBoothRuntime, RuntimeSpec
from dreambooth_trainer.jobfile.explain import validate
from dreambooth_trainer.jobfile.load import read_text, without_nulls
from dreambooth_trainer.jobfile.yamltext import Path as KeyPath
from dreambooth_trainer.jobfile.yamltext import read_documents


def load_runtime(path: Path) -> RuntimeSpec:
    """Load and validate the only DreamBoothRuntime of a file.

    Raises:
        UserError: with all issues of the file.
    """
    documents = read_documents(read_text(path), path.name)
    runtimes = [d for d in documents if isinstance(d.value, dict) and d.value.get("kind") == RUNTIME_KIND]
    if len(runtimes) != 1:
        rule = f"contains {len(runtimes)} {RUNTIME_KIND}s"
        raise UserError(ValidationIssue(path.name, None, rule, f"pass a file with one {RUNTIME_KIND}"))
    lines = runtimes[0].lines

    def source(key_path: KeyPath) -> str:
        known = (key_path[:length] for length in range(len(key_path), -1, -1))
        return next((f"{path.name}, line {lines[prefix]}" for prefix in known if prefix in lines), path.name)

    return validate(DreamBoothRuntime, without_nulls(runtimes[0].value, DreamBoothRuntime), source, path.name).spec
