"""A published model as others find it: a diffusers folder with a note of how it was meant to be used."""

from __future__ import annotations

from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.store.owner import MANIFEST, job_id


class ModelManifest(Strict):
    """What a model's user should know, and what belongs to the model; lies in the folder as dreambooth.json.

    Attributes:
        job: namespace/name of the job that made it.
        files: every file of the model, this one included, relative to the folder.
    """

    job: str
    files: tuple[str, ...]
    base_model: str
    base_digest: str
    instance_prompt: str
    class_prompt: str
    resolution: int
    sampler: SamplerSettings


class Published(Strict):
    """A model folder, ready to draw with."""

    folder: Path
    resolution: int
    sampler: SamplerSettings
    sampling_batch_size: int


def build_manifest(plan: Plan, base_digest: str, model: Path) -> ModelManifest:
    """The note of a plan's model, all whose other files are in a folder."""
    files = {path.relative_to(model).as_posix() for path in model.rglob("*") if path.is_file()}
    return ModelManifest(
        job=job_id(plan.job),
        files=tuple(sorted(files | {MANIFEST})),
        base_model=plan.model.id,
        base_digest=base_digest,
        instance_prompt=plan.instance_prompt,
        class_prompt=plan.class_prompt,
        resolution=plan.resolution,
        sampler=plan.sampler,
    )


def open_published(folder: Path) -> Published:
    """A model by its job's folder or its own.

    Raises:
        UserError: no published model there.
    """
    for candidate in (folder / "model", folder):
        if (candidate / MANIFEST).exists():
            if not (candidate / "model_index.json").exists():
                rule = "holds a single file only"
                raise UserError(
                    ValidationIssue("--model", str(candidate), rule, "publish it with formats: [diffusers] as well")
                )
            note = ModelManifest.model_validate_json((candidate / MANIFEST).read_text())
            batch = model_defaults(note.base_model).sampling_batch_size
            return Published(
                folder=candidate, resolution=note.resolution, sampler=note.sampler, sampling_batch_size=batch
            )
    unfinished = (folder / "work").exists()
    rule = "holds a job that is not finished" if unfinished else "is no folder of a published model"
    remedy = "run the job to its end first" if unfinished else "write the folder that `dreambooth run --out` made"
    raise UserError(ValidationIssue("--model", str(folder), rule, remedy))
