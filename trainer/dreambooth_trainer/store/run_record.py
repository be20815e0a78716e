"""What the last run of a job's folder was about: its plan, and by phase the key of the inputs that it wants."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder, atomic_write


class RunRecord(Strict):
    """One run.

    Attributes:
        keys: by phase, in order, the fingerprint of its inputs.
    """

    plan: Plan
    keys: dict[str, str]


def write_run(folder: JobFolder, run: RunRecord) -> None:
    """Replace the record of the run before."""
    atomic_write(folder.run, run.model_dump_json(by_alias=True, indent=2))


def read_run(folder: JobFolder) -> RunRecord:
    """The last run of a job's folder.

    Raises:
        UserError: the folder holds none, or one of another version.
    """
    try:
        return RunRecord.model_validate_json(folder.run.read_text())
    except FileNotFoundError:
        rule, remedy = "is not the folder of a job that ran", "write the folder that `dreambooth run --out` made"
    except ValidationError:
        rule, remedy = "holds a run of another version", "run the job again"
    raise UserError(ValidationIssue("OUT", str(folder.root), rule, remedy))


def read_completion(folder: JobFolder, keys: Mapping[str, str], phase: str) -> dict[str, JsonValue] | None:
    """The completion record of a phase; None if it has not finished with the inputs that `keys` stands for."""
    record = folder.completion_record(phase)
    if not record.exists():
        return None
    content = json.loads(record.read_text())
    return content if content["key"] == keys[phase] else None
