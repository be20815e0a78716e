"""Finds the files of DINO and CLIP, and checks them without loading them. Imports neither torch nor transformers."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.uris import BUILTIN_SPRITES
from dreambooth_trainer.models.files import ReadText, model_files, weight_files
from dreambooth_trainer.models.hub import Repository, converted_revision, fetch, open_repository

CONFIG: Final = "config.json"


@dataclass(frozen=True)
class EncoderKind:
    """The kind of model that a field of `spec.evaluation.encoders` expects.

    Attributes:
        path: the field.
        model_class: class in transformers.
        model_type: `model_type` in the model's config.json.
        files: by description, the names of files of which one is needed besides configuration and weights.
    """

    path: str
    model_class: str
    model_type: str
    files: tuple[tuple[str, frozenset[str]], ...] = ()


DINO: Final = EncoderKind("spec.evaluation.encoders.dino", "ViTModel", "vit")
CLIP: Final = EncoderKind(
    "spec.evaluation.encoders.clip",
    "CLIPModel",
    "clip",
    (
        ("tokenizer", frozenset({"tokenizer.json", "vocab.json"})),
        ("image processor", frozenset({"preprocessor_config.json", "processor_config.json"})),
    ),
)


def pinned_commit(kind: EncoderKind, name: str) -> str | None:
    """Check an encoder without downloading its weights. Returns its commit; None if it is not from the Hub.

    Raises:
        UserError: the encoder is not available, of another kind, or has no safetensors weights.
        TransientError: the Hub cannot be reached.
    """
    if name == BUILTIN_SPRITES:
        return None
    if _is_local(kind, name):
        names = {file.name for file in Path(name).iterdir()}
        _check(kind, name, names, lambda file: (Path(name) / file).read_text())
        return None
    repository = open_repository(name, None, kind.path, CONFIG)
    if not weight_files(repository.names, repository.read) and (revision := converted_revision(name, kind.path)):
        repository = open_repository(name, revision, kind.path, CONFIG)
    _check(kind, name, repository.names, repository.read)
    return repository.commit


def pinned_commits(dino: str, clip: str) -> dict[str, str]:
    """Check both encoders as `pinned_commit`. Returns the commits of those from the Hub, by ID.

    Raises:
        UserError: with the issues of both.
        TransientError: the Hub cannot be reached.
    """
    commits: dict[str, str] = {}
    issues: list[ValidationIssue] = []
    for kind, name in ((DINO, dino), (CLIP, clip)):
        try:
            commit = pinned_commit(kind, name)
        except UserError as error:
            issues += error.issues
            continue
        if commit is not None:
            commits[name] = commit
    if issues:
        raise UserError(issues)
    return commits


def encoder_folder(kind: EncoderKind, name: str, commit: str | None = None) -> Path:
    """The local folder of an encoder, downloaded from the Hub if needed.

    Args:
        commit: what `pinned_commit` returned. With it, no request is made if the files are in the cache.

    Raises:
        UserError, TransientError: as `pinned_commit`.
    """
    commit = commit or pinned_commit(kind, name)
    return fetch(name, commit, kind.path, CONFIG, _files) if commit else Path(name)


def encoder_digest(folder: Path) -> str:
    """SHA-256 of the names and contents of the files of an encoder that are loaded."""
    names = model_files({path.name for path in folder.iterdir()}, lambda name: (folder / name).read_text())
    total = hashlib.sha256()
    for name in names:
        with (folder / name).open("rb") as file:
            total.update(f"{hashlib.file_digest(file, 'sha256').hexdigest()}  {name}\n".encode())
    return f"sha256:{total.hexdigest()}"


def unavailable(kind: EncoderKind, name: str, rule: str) -> UserError:
    """The error for an encoder that cannot be used, with the remedies that all of them share."""
    remedy = f"set a local folder with the model, {BUILTIN_SPRITES} for sprite subjects, or evaluation.enabled: false"
    return UserError(ValidationIssue(kind.path, name, rule, remedy))


def _files(repository: Repository) -> list[str]:
    return model_files(repository.names, repository.read)


def _is_local(kind: EncoderKind, name: str) -> bool:
    if Path(name).is_dir():
        return True
    if name.startswith(("/", "./", "../")):
        raise unavailable(kind, name, "the folder does not exist")
    return False


def _check(kind: EncoderKind, name: str, files: Collection[str], read: ReadText) -> None:
    try:
        model_type = json.loads(read(CONFIG)).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise unavailable(kind, name, f"has no readable {CONFIG}") from error
    if model_type != kind.model_type:
        raise unavailable(kind, name, f"is not a {kind.model_class}: {CONFIG} has model_type {model_type!r}")
    if not weight_files(files, read):
        raise unavailable(kind, name, f"no {kind.model_class} with safetensors weights was found under this name")
    for description, alternatives in kind.files:
        if not alternatives.intersection(files):
            raise unavailable(kind, name, f"has no {description} ({' or '.join(sorted(alternatives))})")
