"""Cache of latents and text conditioning, computed once and read by every worker.

Legend: N images, K subjects, P unique prompts, C h w latent, L tokens, D conditioning width.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor


@dataclass(frozen=True)
class Latents:
    """Encoded images of one kind, and their prompts. With augmentation, each variant of an image is an image.

    Attributes:
        mean, std: parameters of the latent distribution of each image, [N, C, h, w].
        subject_ranges: first and end index of the images of each subject, [K, 2], not counting augmented variants.
            Subjects can share class images.
        prompt_indices: index of each image's prompt, [N].
        token_ids: tokens of each prompt, [P, L].
        conditioning: [P, L, D], or None if the text encoder is trained, so that prompts are encoded at every step.
    """

    mean: Tensor
    std: Tensor
    subject_ranges: Tensor
    prompt_indices: Tensor
    token_ids: Tensor
    conditioning: Tensor | None

    @property
    def images(self) -> tuple[range, ...]:
        """Indices of the images of each subject."""
        return tuple(range(first, end) for first, end in self.subject_ranges.tolist())


@dataclass(frozen=True)
class TrainingData:
    """Latents of the instance images and of the class images (None without prior preservation)."""

    instance_images: Latents
    class_images: Latents | None


def save_data(data: TrainingData, path: Path) -> None:
    """Write the cache as one safetensors file, with keys `<kind>.<field>`."""
    tensors: dict[str, Tensor] = {}
    for kind, latents in (("instance_images", data.instance_images), ("class_images", data.class_images)):
        if latents is not None:
            values = {f.name: getattr(latents, f.name) for f in fields(latents)}
            tensors |= {f"{kind}.{name}": value.contiguous() for name, value in values.items() if value is not None}
    save_file(tensors, path)
    path.chmod(0o644)  # safetensors (0.8) writes files that only their owner can read


def load_data(path: Path, device: str = "cpu") -> TrainingData:
    """Read a file that `save_data` wrote, into the memory of a device."""
    tensors = load_file(path, device)

    def latents(kind: str) -> Latents:
        conditioning = tensors.get(f"{kind}.conditioning")
        required = ("mean", "std", "subject_ranges", "prompt_indices", "token_ids")
        return Latents(**{name: tensors[f"{kind}.{name}"] for name in required}, conditioning=conditioning)

    has_class_images = "class_images.mean" in tensors
    return TrainingData(latents("instance_images"), latents("class_images") if has_class_images else None)


def sample_latents(latents: Latents, indices: Tensor, noise: Tensor) -> Tensor:
    """Sample from the latent distributions of some images, [B, C, h, w], as `AutoencoderKL.encode` would.

    Args:
        noise: standard normal, [B, C, h, w].
    """
    return torch.addcmul(latents.mean[indices], latents.std[indices], noise)
