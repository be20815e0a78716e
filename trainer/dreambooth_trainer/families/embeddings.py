"""Files with the embeddings of new tokens, which diffusers' `load_textual_inversion` reads: one per subject."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from dreambooth_trainer.families.base import TextSlot
from dreambooth_trainer.models.clip_pooling import pool_at_end
from dreambooth_trainer.models.files import EMBEDDINGS_PATTERN, TOKEN_COMPONENTS, embeddings_file

_ONLY = ("text_encoder", "tokenizer")


def save_embeddings(slots: Sequence[TextSlot], embeddings: Mapping[str, Mapping[str, Tensor]], target: Path) -> None:
    """Write the embeddings of each token to a file, and the tokenizers with the tokens to the folders of a pipeline.

    Args:
        slots: with the tokens in their tokenizers.
        embeddings: by module and token, each [V, D].
    """
    keys = {slot.module: slot.key for slot in slots}
    tokens = list(dict.fromkeys(token for own in embeddings.values() for token in own))
    for index, token in enumerate(tokens):
        tensors = {keys[module] or token: own[token].contiguous() for module, own in embeddings.items()}
        save_file(tensors, target / embeddings_file(index), metadata={"format": "pt", "token": token})
        (target / embeddings_file(index)).chmod(0o644)  # safetensors (0.8) writes files that only their owner can read
    for slot in slots:
        slot.tokenizer.save_pretrained(target / slot.folder)


def load_embeddings(pipeline: Any, folder: Path) -> None:
    """Load all files that `save_embeddings` wrote to a folder into a pipeline of the base model."""
    components = TOKEN_COMPONENTS.get(type(pipeline).__name__, {})
    for path in sorted(folder.glob(EMBEDDINGS_PATTERN)):
        with safe_open(path, "pt") as file:
            token: str = file.metadata()["token"]
            tensors: dict[str, Tensor] = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - no mapping
        for key, tensor in tensors.items():
            encoder, tokenizer = (getattr(pipeline, name) for name in components.get(key, _ONLY))
            pool_at_end(encoder, tokenizer)
            pipeline.load_textual_inversion(tensor, token=token, text_encoder=encoder, tokenizer=tokenizer)
