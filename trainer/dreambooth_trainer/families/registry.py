"""Which family a model belongs to, where its files are, and what identifies its weights."""

from __future__ import annotations

import functools
import hashlib
import json
from pathlib import Path

from dreambooth_trainer.defaults import BUILTIN_SPRITES
from dreambooth_trainer.families.base import Family
from dreambooth_trainer.faults import Fault, UserError
from dreambooth_trainer.spec import BaseModelRef

# A family is one module and one line here; the key is `_class_name` of model_index.json.
FAMILIES = {"StableDiffusionPipeline": "dreambooth_trainer.families.stable_diffusion:StableDiffusion"}
# The rest of a hub repository is other formats of the same weights, or pickles.
WANTED_FILES = ["*.json", "*.txt", "*/*.json", "*/*.txt", "*/*.safetensors"]


def local_folder(model: BaseModelRef) -> Path:
    """The diffusers folder of a model on this machine, fetched from the hub where it is not there.

    Raises:
        UserError: it is neither a folder nor to be had from the hub.
    """
    if model.id == BUILTIN_SPRITES:
        from dreambooth_trainer.sprites import WEIGHTS

        return WEIGHTS
    folder = Path(model.id).expanduser()
    if folder.is_dir():
        return folder
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(model.id, revision=model.revision, allow_patterns=WANTED_FILES))
    except Exception as error:
        raise UserError(
            Fault(
                "spec.model.id",
                model.id,
                f"is neither a folder here nor to be had from the hub ({type(error).__name__})",
                f"write the folder of a diffusers model, a hub id, or {BUILTIN_SPRITES}",
            )
        ) from error


def open_family(folder: Path) -> Family:
    """The family of a diffusers folder; imports what that family needs, which takes seconds.

    Raises:
        UserError: as `family_name`.
    """
    module, _, attribute = FAMILIES[family_name(folder)].partition(":")
    return getattr(__import__(module, fromlist=[attribute]), attribute)()


def family_name(folder: Path) -> str:
    """The key in FAMILIES of a diffusers folder.

    Raises:
        UserError: no diffusers folder, or of a family that is not known here.
    """
    index = folder / "model_index.json"
    try:
        name = json.loads(index.read_text())["_class_name"]
    except (OSError, ValueError, KeyError) as error:
        fault = Fault(
            "spec.model.id", str(folder), "has no readable model_index.json", "write a diffusers model's folder"
        )
        raise UserError(fault) from error
    if name not in FAMILIES:
        known = ", ".join(FAMILIES)
        raise UserError(Fault("spec.model.id", str(folder), f"is a {name}", f"write a model of one of: {known}"))
    return name


@functools.cache
def weights_digest(folder: Path) -> str:
    """SHA-256 over names and contents of a model's weights and configuration; names what was drawn with it."""
    digest = hashlib.sha256()
    parts = [p for p in folder.glob("*/*") if p.suffix in {".safetensors", ".json"} and p.parent.name != "evaluator"]
    for path in sorted(parts):
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
