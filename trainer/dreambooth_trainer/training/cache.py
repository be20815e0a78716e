"""Cache of encoded images and prompts, computed once and read by every worker.

Legend: N images, K subjects, P unique prompts.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from dreambooth_trainer.families.base import Tensors

_FIELDS = ("subject_ranges", "prompt_indices", "weights")


@dataclass(frozen=True)
class EncodedImages:
    """Encoded images of one kind, and their prompts. With augmentation, each variant of an image is an image.

    Attributes:
        images: result of `Stage.encode_images`, each [N, ...].
        prompts: result of `Stage.encode_prompts`, each [P, ...].
        subject_ranges: first and end index of the images of each subject, [K, 2], not counting augmented variants.
            Subjects can share class images.
        prompt_indices: index of each image's prompt, [N].
        weights: number of times that each image occurs in an epoch, not counting augmented variants.
    """

    images: Tensors
    prompts: Tensors
    subject_ranges: Tensor
    prompt_indices: Tensor
    weights: Tensor

    @functools.cached_property
    def indices(self) -> tuple[tuple[int, ...], ...]:
        """Indices of the images of each subject, each as often as it occurs in an epoch."""
        weights = self.weights.tolist()
        return tuple(
            tuple(index for index in range(first, end) for _ in range(weights[index]))
            for first, end in self.subject_ranges.tolist()
        )

    def examples(self, indices: Tensor) -> dict[str, Tensor]:
        """Some images with their prompts."""
        prompts = self.prompt_indices[indices]
        images = {name: tensor[indices] for name, tensor in self.images.items()}
        return images | {name: tensor[prompts] for name, tensor in self.prompts.items()}


@dataclass(frozen=True)
class TrainingData:
    """The instance images, and the class examples of `priorPreservation.mode`, or None if it has none.

    Class examples are class images, or for mode Prediction the instance images with class prompts.
    """

    instance_images: EncodedImages
    class_images: EncodedImages | None


def save_data(data: TrainingData, path: Path) -> None:
    """Write the cache as one safetensors file, with keys `<kind>.images.<name>`, `<kind>.prompts.<name>`."""
    tensors: dict[str, Tensor] = {}
    for kind, encoded in (("instance_images", data.instance_images), ("class_images", data.class_images)):
        if encoded is None:
            continue
        for group in ("images", "prompts"):
            tensors |= {f"{kind}.{group}.{name}": value for name, value in getattr(encoded, group).items()}
        tensors |= {f"{kind}.{name}": getattr(encoded, name) for name in _FIELDS}
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    path.chmod(0o644)  # safetensors (0.8) writes files that only their owner can read


def load_data(path: Path, device: str = "cpu") -> TrainingData:
    """Read a file that `save_data` wrote, into the memory of a device."""
    tensors = load_file(path, device)

    def group(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    def encoded(kind: str) -> EncodedImages:
        fields = {name: tensors[f"{kind}.{name}"] for name in _FIELDS}
        return EncodedImages(group(f"{kind}.images."), group(f"{kind}.prompts."), **fields)

    has_class_images = "class_images.prompt_indices" in tensors
    return TrainingData(encoded("instance_images"), encoded("class_images") if has_class_images else None)
