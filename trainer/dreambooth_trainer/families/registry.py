"""Which family a model belongs to, where its files are, and what identifies its weights."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Collection
from pathlib import Path

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.job import BaseModelRef
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.families.base import Family
from dreambooth_trainer.models.files import (
    INDEX,
    local_names,
    local_pipeline_files,
    pipeline_files,
    without_safetensors,
)
from dreambooth_trainer.models.hub import Repository, fetch

# A family is one module and one line here; the key is `_class_name` of model_index.json.
FAMILIES = {"StableDiffusionPipeline": "dreambooth_trainer.families.stable_diffusion:StableDiffusion"}


def local_folder(model: BaseModelRef) -> Path:
    """The diffusers folder of a model on this machine, fetched from the hub where it is not there.

    Raises:
        UserError: it is neither a folder nor to be had from the hub, or cannot be used, as `family_name`.
        TransientError: the hub cannot be reached.
    """
    if model.id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites import WEIGHTS

        return WEIGHTS
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        return folder
    return fetch(model.id, model.revision, "spec.model.id", INDEX, _files_of_known_family)


def pinned(model: BaseModelRef) -> BaseModelRef:
    """A model with its commit as revision if it is from the hub: all workers read the same, without asking again.

    Raises:
        UserError, TransientError: as `local_folder`.
    """
    if model.id == BUILTIN_SPRITES or Path(model.id).expanduser().is_dir():
        return model
    return model.model_copy(update={"revision": local_folder(model).name})


def _files_of_known_family(repository: Repository) -> list[str]:
    _known_family(repository.read(INDEX), repository.names, repository.model_id)
    return pipeline_files(repository.names, repository.read)


def open_family(folder: Path) -> Family:
    """The family of a diffusers folder; imports what that family needs, which takes seconds.

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
    """The key in FAMILIES of a diffusers folder.

    Raises:
        UserError: no diffusers folder, of a family that is not known here, or without safetensors weights.
    """
    try:
        content = (folder / INDEX).read_text()
    except OSError as error:
        raise UserError(_unreadable(str(folder))) from error
    return _known_family(content, local_names(folder), str(folder))


def _known_family(index: str, names: Collection[str], where: str) -> str:
    try:
        name = json.loads(index)["_class_name"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(_unreadable(where)) from error
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(ValidationIssue("spec.model.id", where, f"is a {name}", f"write a model of one of: {known}"))
    if pickled := without_safetensors(names):
        rule = f"has no safetensors weights in {', '.join(pickled)}, and other formats may hold code"
        raise UserError(ValidationIssue("spec.model.id", where, rule, "save it with safe_serialization=True"))
    return name


def _unreadable(where: str) -> ValidationIssue:
    return ValidationIssue("spec.model.id", where, f"has no readable {INDEX}", "write a diffusers model's folder")


@functools.cache
def weights_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a model's weights and configuration; names what was drawn with it.

    Only files that are loaded count: the same model has the same digest beside other formats of its weights.
    """
    digest = hashlib.sha256()
    for path in local_pipeline_files(folder):
        if path.name == INDEX:
            continue  # It also lists what is not loaded.
        digest.update(f"{path.relative_to(folder)}\0".encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def rare_identifier(folder: Path, seed_text: str) -> str:
    """A rare token that the model's tokenizer keeps whole (paper, section 3.1): three letters, late in the vocabulary.

    The same `seed_text` gets the same token.
    """
    from transformers import AutoTokenizer

    vocabulary = AutoTokenizer.from_pretrained(folder / "tokenizer").get_vocab()
    words = {word.removesuffix("</w>"): rank for word, rank in vocabulary.items() if word.endswith("</w>")}
    short = sorted((w for w in words if len(w) == 3 and w.isascii() and w.isalpha()), key=lambda w: words[w])
    rare = short[-max(1, len(short) // 4) :]
    return rare[int.from_bytes(hashlib.sha256(seed_text.encode()).digest()[:8]) % len(rare)]
