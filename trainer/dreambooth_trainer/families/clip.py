"""CLIP text encoders of the Stable Diffusion families."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from diffusers.loaders import TextualInversionLoaderMixin
from torch import Tensor
from transformers import PreTrainedTokenizerBase


def token_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], length: int | None = None) -> Tensor:
    """Token IDs of prompts, [N, L], padded and truncated to a length, which defaults to that of the model.

    As in pipelines, a new token with several vectors stands for all of its tokens.
    """
    loader: Any = TextualInversionLoaderMixin()
    return tokenizer(
        loader.maybe_convert_prompt(list(prompts), tokenizer),
        padding="max_length",
        max_length=length or tokenizer.model_max_length,
        truncation=True,
        return_tensors="pt",
    ).input_ids


def with_text_model_prefix(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Adapter weights with the prefix that tools expect. transformers 5 removed it; diffusers reads both."""
    return {f"text_model.{name.removeprefix('text_model.')}": weight for name, weight in weights.items()}


def set_fp32_config(folder: Path) -> None:
    """Name fp32 in the configuration of a text encoder.

    from_pretrained loads a text encoder in the dtype of its configuration, and a U-Net in fp32.
    """
    config = folder / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "dtype": "float32"}, indent=2) + "\n")
