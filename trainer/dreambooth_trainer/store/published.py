"""A published model: a diffusers folder with a manifest."""

from __future__ import annotations

from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.store.owner import MANIFEST, job_id


class ModelManifest(Strict):
    """The content of dreambooth.json: how the model was trained, how to sample from it, and its files.

    Attributes:
        job: namespace/name of the job that created the model.
        files: all files of the model including the manifest, relative to its folder.
        base_digest: digest of the base model's weights.
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
    """A published model, with the settings to sample from it."""

    folder: Path
    resolution: int
    sampler: SamplerSettings
    sampling_batch_size: int


def build_manifest(plan: Plan, base_digest: str, model: Path) -> ModelManifest:
    """The manifest of a plan's model, whose other files are complete in the folder `model`."""
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
    """Open a published model.

    Args:
        folder: folder of the model, or of its job.

    Raises:
        UserError: there is no published model, or it has no diffusers format.
    """
    for candidate in (folder / "model", folder):
        if (candidate / MANIFEST).exists():
            if not (candidate / "model_index.json").exists():
                rule = "contains a single-file model only"
                remedy = "add diffusers to output.formats, and run the job again"
                raise UserError(ValidationIssue("--model", str(candidate), rule, remedy))
            manifest = ModelManifest.model_validate_json((candidate / MANIFEST).read_text())
            batch = model_defaults(manifest.base_model).sampling_batch_size
            return Published(
                folder=candidate, resolution=manifest.resolution, sampler=manifest.sampler, sampling_batch_size=batch
            )
    unfinished = (folder / "work").exists()
    rule = "is the folder of an unfinished job" if unfinished else "is not the folder of a published model"
    remedy = "complete the job first" if unfinished else "pass the folder that `dreambooth run --out` created"
    raise UserError(ValidationIssue("--model", str(folder), rule, remedy))
