"""References to pretrained models."""

from __future__ import annotations

import os
from pathlib import Path

from pydantic import Field

from dreambooth_api.fields import Strict
from dreambooth_api.uris import BUILTIN_SPRITES


def public_name(model_id: str) -> str:
    """A Hub ID, or the name of a local folder without its path, which others should not see."""
    return Path(model_id).name if os.path.isabs(model_id) else model_id  # noqa: PTH117 - not a path if it is a Hub ID


class ModelSource(Strict):
    """Pretrained model on the Hugging Face Hub, or in a folder."""

    id: str = Field(min_length=1, description="Hugging Face Hub ID, or path of a diffusers folder.")
    revision: str | None = Field(default=None, min_length=1, description="Commit, tag or branch on the Hub.")


class BaseModelRef(ModelSource):
    """Pretrained text-to-image model to fine-tune."""

    id: str = Field(
        default=BUILTIN_SPRITES,
        min_length=1,
        description=f"Hugging Face Hub ID, path of a diffusers folder, or {BUILTIN_SPRITES}.",
    )
    super_resolution: ModelSource | None = Field(
        default=None,
        description="Super-resolution model that enlarges the images of the base model. Both are fine-tuned. Only for "
        "DeepFloyd IF.",
    )
