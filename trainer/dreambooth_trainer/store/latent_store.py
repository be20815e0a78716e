"""Latents of class images, next to the images, so that jobs that share the images encode them once.

Legend: N images, C h w latent.
"""

from __future__ import annotations

import math
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dreambooth_api.errors import TransientError
from dreambooth_trainer.store.folder import atomic_write

# PyTorch is imported inside functions: the driver does not need it.
if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class LatentStore:
    """A folder with one safetensors file per image. The folder of the images is named by all inputs of both."""

    url: str

    def write(self, name: str, mean: Tensor, std: Tensor) -> None:
        """Write mean and standard deviation of the latent distribution of an image, each [C, h, w], atomically."""
        from safetensors.torch import save

        content = save({"mean": mean.contiguous(), "std": std.contiguous()})
        fs, path = fsspec.url_to_fs(self.url)
        if isinstance(fs, LocalFileSystem):
            atomic_write(Path(path) / f"{name}.safetensors", content)
        else:
            fs.pipe_file(f"{path}/{name}.safetensors", content)

    def read(self, name: str, shape: tuple[int, ...]) -> tuple[Tensor, Tensor] | None:
        """Mean and standard deviation, in fp32; None if the file is missing, damaged or has another content."""
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        fs, path = fsspec.url_to_fs(self.url)
        try:
            content: Any = fs.cat_file(f"{path}/{name}.safetensors")
            tensors = load(content)
        except (FileNotFoundError, SafetensorError):
            return None
        if tensors.keys() != {"mean", "std"}:
            return None
        mean, std = tensors["mean"], tensors["std"]
        intact = all(t.shape == shape and t.dtype == torch.float32 and bool(t.isfinite().all()) for t in (mean, std))
        return (mean, std) if intact and bool((std >= 0).all()) else None

    def stack(self, names: list[str], shape: tuple[int, ...], scratch: Path) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of many images, each [N, C, h, w], backed by deleted files in `scratch`.

        100,000 images of Stable Diffusion have 13 GB of latents, more than a machine may have memory for.

        Raises:
            TransientError: a file has become unreadable.
        """
        mean, std = (_on_disk((len(names), *shape), scratch) for _ in range(2))
        for index, name in enumerate(names):
            found = self.read(name, shape)
            if found is None:
                raise TransientError(f"{self.url}/{name}.safetensors was deleted or damaged while it was used")
            mean[index], std[index] = found
        return mean, std


def _on_disk(shape: tuple[int, ...], scratch: Path) -> Tensor:
    import torch

    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)
