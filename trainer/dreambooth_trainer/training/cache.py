"""Latents and text conditioning, computed once and read by every worker.

Legend: N images, P different prompts, C h w latent, L tokens, D conditioning width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """One kind of image: the latents' distribution, each [N, C, h, w], and each image's prompt.

    Attributes:
        prompt_of: number of each image's prompt, [N].
        token_ids: of each prompt, [P, L].
        conditioning: [P, L, D], or None where the text encoder learns and must answer anew each step.
    """

    mean: Tensor
    std: Tensor
    prompt_of: Tensor
    token_ids: Tensor
    conditioning: Tensor | None

    def __len__(self) -> int:
        return len(self.mean)


@dataclass(frozen=True)
class TrainingData:
    """Everything that is trained on; `prior` is None without prior preservation."""

    instance: Latents
    prior: Latents | None


def save_data(data: TrainingData, path: Path) -> None:
    """Write the cache, safetensors."""
    tensors: dict[str, Tensor] = {}
    for kind, latents in (("instance", data.instance), ("prior", data.prior)):
        if latents is not None:
            values = {f.name: getattr(latents, f.name) for f in fields(latents)}
            tensors |= {f"{kind}.{name}": value.contiguous() for name, value in values.items() if value is not None}
    save_file(tensors, path)


def load_data(path: Path) -> TrainingData:
    """Read the cache."""
    tensors = load_file(path)

    def kind(name: str) -> Latents:
        conditioning = tensors.get(f"{name}.conditioning")
        required = ("mean", "std", "prompt_of", "token_ids")
        return Latents(**{key: tensors[f"{name}.{key}"] for key in required}, conditioning=conditioning)

    return TrainingData(kind("instance"), kind("prior") if "prior.mean" in tensors else None)


def sample(latents: Latents, indices: Tensor, noise: Tensor) -> Tensor:
    """A draw from the latents' distribution, [B, C, h, w]: what encoding the image anew would give."""
    return torch.addcmul(latents.mean[indices], latents.std[indices], noise)
