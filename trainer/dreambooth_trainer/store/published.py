"""A published model: a diffusers folder with a manifest."""

from __future__ import annotations

import hashlib
from pathlib import Path

from dreambooth_api import layout
from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.fields import Strict
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_trainer.models.files import ADAPTER_FILE, IMAGE_EMBEDS_FILE, INDEX, embeddings_file
from dreambooth_trainer.planning.cascade import SUPER_RESOLUTION
from dreambooth_trainer.planning.defaults import model_defaults
from dreambooth_trainer.planning.plan import Plan, SamplerSettings
from dreambooth_trainer.store.owner import MANIFEST, Owner, owner_of

# Files that describe the model. They contain times and paths.
_DESCRIPTIONS = {*layout.VIEWED, "README.md", "job.yaml", "scores.json"}


class ModelManifest(Strict):
    """The content of dreambooth.json: how the model was trained, how to sample from it, and its files.

    A model without the diffusers format consists of the base model and an adapter.

    Attributes:
        job: the job that created the model.
        files: SHA-256 of all files of the model except the manifest, by path relative to its folder.
        base_revision: commit of the base model, if it is from the Hub.
        super_resolution: the second stage of the base model, if it has one, with its commit.
        base_digest: digest of the base model's weights.
        instance_prompts: of each subject.
        class_prompts: of the classes of the subjects, each once.
    """

    job: Owner
    files: dict[str, str]
    base_model: str
    base_revision: str | None = None
    super_resolution: ModelSource | None = None
    base_digest: str
    instance_prompts: tuple[str, ...]
    class_prompts: tuple[str, ...]
    resolution: int
    sampler: SamplerSettings


class Published(Strict):
    """A published model, with the settings to sample from it.

    Attributes:
        model: a folder with the complete model, or the base model of an adapter.
        adapter: folder of the adapter, new tokens or images as prompts to load into `model`; None if it is complete.
    """

    model: BaseModelRef
    adapter: Path | None
    resolution: int
    sampler: SamplerSettings
    sampling_batch_size: int


def build_manifest(plan: Plan, base_digest: str, model: Path) -> ModelManifest:
    """The manifest of a plan's model, whose other files are complete in the folder `model`."""
    files = {path.relative_to(model).as_posix(): sha256(path) for path in sorted(model.rglob("*")) if path.is_file()}
    return ModelManifest(
        job=owner_of(plan.job),
        files=files,
        base_model=plan.model.id,
        base_revision=plan.model.revision,
        super_resolution=plan.model.super_resolution,
        base_digest=base_digest,
        instance_prompts=plan.instance_prompts,
        class_prompts=tuple(plan.class_image_counts),
        resolution=plan.resolution,
        sampler=plan.sampler,
    )


def contents_digest(manifest: ModelManifest) -> str:
    """Digest of the weights and the configuration of all formats. It does not depend on the report and the scores."""
    described = {name for name in manifest.files if name.startswith(f"{layout.GALLERY}/")} | _DESCRIPTIONS
    names = sorted(manifest.files.keys() - described)
    lines = "".join(f"{manifest.files[name]}  {name}\n" for name in names)
    return f"sha256:{hashlib.sha256(lines.encode()).hexdigest()}"


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def open_published(folder: Path) -> Published:
    """Open a published model.

    Args:
        folder: folder of the model, or of its job.

    Raises:
        UserError: there is no published model, or it is only available as a single file.
    """
    for candidate in (folder / layout.MODEL, folder):
        if (candidate / MANIFEST).exists():
            return _open_model(candidate)
    unfinished = (folder / "work").exists()
    rule = "is the folder of an unfinished job" if unfinished else "is not the folder of a published model"
    remedy = "complete the job first" if unfinished else "pass the folder that `dreambooth run --out` created"
    raise UserError(ValidationIssue("--model", str(folder), rule, remedy))


def _open_model(folder: Path) -> Published:
    manifest = ModelManifest.model_validate_json((folder / MANIFEST).read_text())
    if (folder / INDEX).exists():
        second = folder.resolve() / SUPER_RESOLUTION if manifest.super_resolution else None
        source = second and ModelSource(id=str(second))
        model, adapter = BaseModelRef(id=str(folder.resolve()), super_resolution=source), None
    elif any((folder / name).exists() for name in (ADAPTER_FILE, embeddings_file(0), IMAGE_EMBEDS_FILE)):
        base = {"id": manifest.base_model, "revision": manifest.base_revision}
        model, adapter = BaseModelRef(**base, super_resolution=manifest.super_resolution), folder
    else:
        rule = "contains a single-file model only"
        remedy = "add diffusers or, with method LoRA, lora to output.formats, and run the job again"
        raise UserError(ValidationIssue("--model", str(folder), rule, remedy))
    return Published(
        model=model,
        adapter=adapter,
        resolution=manifest.resolution,
        sampler=manifest.sampler,
        sampling_batch_size=model_defaults(manifest.base_model).sampling_batch_size,
    )


def single_file_name(plan: Plan) -> str:
    """File name of the complete model. If the method trains an adapter, `<name>.safetensors` is the adapter."""
    merged = "-merged" if plan.spec.training.traits.adapter else ""
    return f"{plan.job.metadata.name}{merged}.safetensors"
