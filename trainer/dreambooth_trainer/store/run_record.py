"""Records of runs in a job's folder: the plan and the keys of the last run, and the results of finished phases."""

from __future__ import annotations

import json
from collections.abc import Mapping

from pydantic import JsonValue, ValidationError

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.status import TrainerPhase
from dreambooth_trainer.planning.plan import Plan
from dreambooth_trainer.store.folder import JobFolder, atomic_write


class RunRecord(Strict):
    """The record of a run.

    Attributes:
        keys: fingerprint of the inputs of each phase, in the order of the phases.
    """

    plan: Plan
    keys: dict[TrainerPhase, str]


def write_run(folder: JobFolder, run: RunRecord) -> None:
    """Write the record of a run. It replaces that of the previous run."""
    atomic_write(folder.run, run.model_dump_json(by_alias=True, indent=2))


def read_run(folder: JobFolder) -> RunRecord:
    """Read the record of the last run.

    Raises:
        UserError: the folder has no record, or one of another version.
    """
    try:
        return RunRecord.model_validate_json(folder.run.read_text())
    except FileNotFoundError:
        rule, remedy = "is not the folder of a job", "pass the folder that `dreambooth run --out` created"
    except ValidationError:
        rule, remedy = "was written by another version of dreambooth", "run the job again"
    raise UserError(ValidationIssue("OUT", str(folder.root), rule, remedy))


def read_completion(
    folder: JobFolder, keys: Mapping[TrainerPhase, str], phase: TrainerPhase
) -> dict[str, JsonValue] | None:
    """The completion record of a phase; None if the phase has not finished with the inputs of `keys`."""
    record = folder.completion_record(phase)
    if not record.exists():
        return None
    content = json.loads(record.read_text())
    return content if content["key"] == keys[phase] else None
