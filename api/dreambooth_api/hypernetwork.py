"""`spec.training.hyperNetwork`: the HyperNetwork of method LoRA."""

from __future__ import annotations

from pydantic import Field

from dreambooth_api.model import ModelSource
from dreambooth_api.uris import BUILTIN_SPRITES


class HyperNetwork(ModelSource):
    """HyperNetwork (Ruiz et al. 2024), on the Hugging Face Hub or in a folder."""

    id: str = Field(min_length=1, description=f"Hugging Face Hub ID, path of a folder, or {BUILTIN_SPRITES}.")
