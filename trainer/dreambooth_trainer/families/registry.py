"""Finds the family, the files and the digest of a model."""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.model import BaseModelRef, ModelSource
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.families.base import Family
from dreambooth_trainer.models.files import (
    INDEX,
    SUPER_RESOLUTION_PIPELINE,
    local_names,
    local_pipeline_files,
    pipeline_files,
    without_safetensors,
)
from dreambooth_trainer.models.hub import Repository, cached_snapshot, fetch, open_repository
from dreambooth_trainer.planning.cascade import SUPER_RESOLUTION
from dreambooth_trainer.planning.model_facts import has_configs

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PATH = "spec.model.id"
SUPER_RESOLUTION_PATH = "spec.model.superResolution.id"
# The first stage of a cascade.
BASE_OF_CASCADE = "IFPipeline"
# By `_class_name` of model_index.json.
FAMILIES = {
    "StableDiffusionPipeline": "dreambooth_trainer.families.stable_diffusion:StableDiffusion",
    "StableDiffusionXLPipeline": "dreambooth_trainer.families.stable_diffusion_xl:StableDiffusionXL",
    "StableDiffusion3Pipeline": "dreambooth_trainer.families.stable_diffusion_3:StableDiffusion3",
    "FluxPipeline": "dreambooth_trainer.families.flux:Flux",
    "ZImagePipeline": "dreambooth_trainer.families.z_image:ZImage",
    BASE_OF_CASCADE: "dreambooth_trainer.families.deepfloyd_if:DeepFloydIF",
    SUPER_RESOLUTION_PIPELINE: "dreambooth_trainer.families.deepfloyd_if:DeepFloydIFSuperResolution",
}

# Tokens that pipelines read of a prompt, if that is less than the length of the tokenizer.
MAX_TOKENS = {BASE_OF_CASCADE: 77}


def local_folder(model: ModelSource, path: str = PATH) -> Path:
    """The local diffusers folder of a model, downloaded from the Hub if needed.

    Args:
        path: field that contains the model ID, for error messages.

    Raises:
        UserError: the model was not found, neither as a local folder nor on the Hub. For a model on the Hub also a
            family that is not supported, or weights that are not safetensors.
        TransientError: the Hub cannot be reached.
    """
    return on_disk(model) or fetch(model.id, model.revision, path, INDEX, _files_of_known_family)


def config_folder(model: ModelSource, path: str = PATH) -> Path:
    """A local folder with the configuration and the tokenizer of a model. No weights are downloaded.

    Raises:
        UserError: as `local_folder`, also for a model in a local folder.
        TransientError: the Hub cannot be reached.
    """
    folder = on_disk(model)
    if folder is None:
        return fetch(model.id, model.revision, path, INDEX, _configs_of_known_family)
    _known_family(_read_index(folder, path), local_names(folder), str(folder), path)
    return folder


def stage_folders(model: BaseModelRef) -> dict[str, Path]:
    """As `config_folder`, of each stage of a model by name. The name of the first stage is empty.

    Raises:
        UserError: as `config_folder`, or the models are not the stages of a cascade.
    """
    folders = {"": config_folder(model)}
    base = family_name(folders[""])
    if base == SUPER_RESOLUTION_PIPELINE:
        rule = "is a super-resolution model, which enlarges images of another one"
        remedy = f"set it as {SUPER_RESOLUTION_PATH}, and {PATH} to its base model"
        raise UserError(ValidationIssue(PATH, model.id, rule, remedy))
    if model.super_resolution is None:
        return folders
    if base != BASE_OF_CASCADE:
        rule, remedy = f"needs a base model of class {BASE_OF_CASCADE}, {PATH} is a {base}", "remove superResolution"
        raise UserError(ValidationIssue(SUPER_RESOLUTION_PATH, model.super_resolution.id, rule, remedy))
    folders[SUPER_RESOLUTION] = config_folder(model.super_resolution, SUPER_RESOLUTION_PATH)
    second = family_name(folders[SUPER_RESOLUTION])
    if second != SUPER_RESOLUTION_PIPELINE:
        rule, remedy = f"is a {second}", f"set a model of class {SUPER_RESOLUTION_PIPELINE}"
        raise UserError(ValidationIssue(SUPER_RESOLUTION_PATH, model.super_resolution.id, rule, remedy))
    return folders


def known_config_folder(model: BaseModelRef) -> Path | None:
    """As `config_folder`, but without the Hub: None if the files are not on this machine.

    Raises:
        UserError: as `config_folder`.
    """
    if on_disk(model) is not None:
        second = model.super_resolution
        if second is None or on_disk(second) is not None:
            return stage_folders(model)[""]
        folder = config_folder(model)
        if family_name(folder) != BASE_OF_CASCADE:
            rule, remedy = f"needs a base model of class {BASE_OF_CASCADE}", "remove superResolution"
            raise UserError(ValidationIssue(SUPER_RESOLUTION_PATH, second.id, rule, remedy))
        return folder
    folder = None if os.path.isabs(model.id) else cached_snapshot(model.id, model.revision, INDEX)  # noqa: PTH117
    if folder is None or not has_configs(folder) or not _has_tokenizer(folder):
        return None
    _known_family(_read_index(folder), (), model.id)
    return folder


def _has_tokenizer(folder: Path) -> bool:
    names = {path.name for path in (folder / "tokenizer").glob("*.*")}
    return any(names >= files for files in ({"tokenizer.json"}, {"vocab.json", "merges.txt"}, {"spiece.model"}))


def pinned(model: BaseModelRef) -> BaseModelRef:
    """The model with its commit as the revision, if it is from the Hub, so that all workers load the same files.

    Raises:
        UserError, TransientError: as `local_folder`.
    """
    second = model.super_resolution
    commits = {"revision": _commit(model, PATH)}
    if second is not None:
        second = second.model_copy(update={"revision": _commit(second, SUPER_RESOLUTION_PATH)})
    return model.model_copy(update={**commits, "super_resolution": second})


def _commit(model: ModelSource, path: str) -> str | None:
    """The commit of a model on the Hub. The revision of another one has no meaning, and is kept."""
    if on_disk(model) is not None:
        return model.revision
    return open_repository(model.id, model.revision, path, INDEX).commit


def on_disk(model: ModelSource) -> Path | None:
    """The folder of a model that is not on the Hub; None for a model on the Hub."""
    if model.id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites import WEIGHTS

        return WEIGHTS
    # Workers run in another folder, so a relative path would be another one there. `load_job` resolves paths.
    return Path(model.id) if os.path.isabs(model.id) and os.path.isdir(model.id) else None  # noqa: PTH112, PTH117


def _files_of_known_family(repository: Repository) -> list[str]:
    _known_family(repository.read(INDEX), repository.names, repository.model_id, repository.path)
    return pipeline_files(repository.names, repository.read)


def _configs_of_known_family(repository: Repository) -> list[str]:
    return [name for name in _files_of_known_family(repository) if not name.endswith(".safetensors")]


def open_family(folder: Path) -> Family:
    """The family of a diffusers folder. Imports the family's libraries, which takes seconds.

    Raises:
        UserError: as `family_name`.
    """
    module, _, attribute = FAMILIES[family_name(folder)].partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)()


def family_module(folder: Path) -> str:
    """The module that implements the family of a diffusers folder.

    Raises:
        UserError: as `family_name`.
    """
    return FAMILIES[family_name(folder)].partition(":")[0]


def family_name(folder: Path) -> str:
    """The key in FAMILIES of a diffusers folder, which may be without weights.

    Raises:
        UserError: not a diffusers folder, or a family that is not supported.
    """
    return _known_family(_read_index(folder), (), str(folder))


def _read_index(folder: Path, path: str = PATH) -> str:
    try:
        return (folder / INDEX).read_text()
    except OSError as error:
        raise UserError(_unreadable(str(folder), path)) from error


def _known_family(index: str, names: Collection[str], where: str, path: str = PATH) -> str:
    try:
        name = json.loads(index)["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_unreadable(where, path)) from error
    if name not in FAMILIES:
        supported = ", ".join(FAMILIES)
        remedy = f"use a model of one of these classes: {supported}"
        raise UserError(ValidationIssue(path, where, f"is a {name}, which is not supported", remedy))
    if pickled := without_safetensors(names):
        rule = f"has no safetensors weights in {', '.join(pickled)}; other formats can contain code"
        raise UserError(ValidationIssue(path, where, rule, "save the model with safe_serialization=True"))
    return name


def _unreadable(where: str, path: str) -> ValidationIssue:
    return ValidationIssue(path, where, f"has no readable {INDEX}", "set the folder of a diffusers model")


@functools.cache
def weights_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of a model's weights and configuration. It is part of the keys of images.

    Covers only files that are loaded, so that the same weights in additional formats do not change the digest.
    """
    return _digest({path.relative_to(folder).as_posix(): _sha256(path) for path in local_pipeline_files(folder)})


def base_digest(model: BaseModelRef) -> str:
    """The `weights_digest` of a model; with several stages, a digest of those of all stages.

    Raises:
        UserError, TransientError: as `local_folder`.
    """
    first = _source_digest(model, PATH)
    if model.super_resolution is None:
        return first
    second = _source_digest(model.super_resolution, SUPER_RESOLUTION_PATH)
    return hashlib.sha256(f"{first} {second}".encode()).hexdigest()


def _source_digest(model: ModelSource, path: str) -> str:
    """The `weights_digest` of a model. Weights that are not on this machine are not downloaded.

    The Hub has the checksums of the weights. A mirror may not have them.

    Raises:
        UserError, TransientError: as `local_folder`.
    """
    if (local := on_disk(model)) is not None:
        return weights_digest(local)
    folder = config_folder(model, path)
    repository = open_repository(model.id, model.revision, path, INDEX)
    names = _files_of_known_family(repository)
    listed = {name: bytes.fromhex(checksum) for name, checksum in repository.checksums.items()}
    found = {name for name in names if (folder / name).is_file()}
    if not found.union(listed).issuperset(names):
        return weights_digest(local_folder(model, path))
    return _digest({name: _sha256(folder / name) if name in found else listed[name] for name in names})


@functools.cache
def _sha256(path: Path) -> bytes:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _digest(files: Mapping[str, bytes]) -> str:
    """SHA-256 of names and SHA-256 of files, in the order of the files."""
    digest = hashlib.sha256()
    for name, checksum in files.items():
        if name != INDEX:  # it also lists components that are not loaded
            digest.update(f"{name}\0".encode())
            digest.update(checksum)
    return digest.hexdigest()


def load_tokenizer(folder: Path, name: str = "tokenizer") -> PreTrainedTokenizerBase:
    """A tokenizer of a diffusers folder, with the length to which the pipeline truncates prompts."""
    from transformers import AutoTokenizer

    tokenizer: Any = AutoTokenizer.from_pretrained(folder / name)
    length: int = tokenizer.model_max_length
    tokenizer.model_max_length = min(length, MAX_TOKENS.get(family_name(folder), length))
    return tokenizer
