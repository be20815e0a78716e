"""Latents of class images, next to the images, so that jobs that share the images encode them once.

Legend: N images.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fsspec
from fsspec.implementations.local import LocalFileSystem

from dreambooth_api.errors import TransientError
from dreambooth_trainer.store.folder import atomic_write
from dreambooth_trainer.store.signing import is_signed, signature
from dreambooth_trainer.store.untrusted import discard, read_file

# PyTorch is imported inside functions: the driver does not need it.
if TYPE_CHECKING:
    from torch import Tensor

_SIGNATURE = "dreambooth-signature"
_OVERHEAD_BYTES = 4096


@dataclass(frozen=True)
class LatentStore:
    """A folder with one safetensors file per image. The folder of the images is named by all inputs of both."""

    url: str

    def write(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write what a family's `Stage.encode_images` returns for one image, atomically."""
        from safetensors.torch import save

        stored = {key: tensor.contiguous() for key, tensor in tensors.items()}
        mac = signature(self.url, name, _bytes(stored))
        content = save(stored, metadata={_SIGNATURE: mac} if mac else None)
        fs, path = fsspec.url_to_fs(self.url)
        if isinstance(fs, LocalFileSystem):
            atomic_write(Path(path) / f"{name}.safetensors", content)
        else:
            fs.pipe_file(f"{path}/{name}.safetensors", content)

    def read(self, name: str, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, Tensor] | None:
        """The tensors of an image, in fp32; None if the file is missing, damaged or has another content.

        In the folder of a trust domain, a file without the right signature counts as damaged. What is not a file is
        deleted.
        """
        import torch
        from safetensors import SafetensorError
        from safetensors.torch import load

        fs, path = fsspec.url_to_fs(self.url)
        file = f"{path}/{name}.safetensors"
        try:
            size = 4 * sum(math.prod(shape) for shape in shapes.values())
            content = read_file(fs, file, size + _OVERHEAD_BYTES)
            if content is None:
                discard(fs, file)
                return None
            tensors = load(content)
        except (FileNotFoundError, SafetensorError):
            return None
        if {key: tuple(tensor.shape) for key, tensor in tensors.items()} != dict(shapes):
            return None
        if not all(t.dtype == torch.float32 and bool(t.isfinite().all()) for t in tensors.values()):
            return None
        return tensors if is_signed(self.url, name, _bytes(tensors), _metadata(content).get(_SIGNATURE)) else None

    def stack(self, names: list[str], shapes: Mapping[str, tuple[int, ...]], scratch: Path) -> dict[str, Tensor]:
        """The tensors of many images, each [N, ...], backed by deleted files in `scratch`.

        100,000 images of Stable Diffusion have 13 GB of latents, more than a machine may have memory for.

        Raises:
            TransientError: a file has become unreadable.
        """
        stacked = {key: _on_disk((len(names), *shape), scratch) for key, shape in shapes.items()}
        for index, name in enumerate(names):
            found = self.read(name, shapes)
            if found is None:
                raise TransientError(f"{self.url}/{name}.safetensors was deleted or damaged while it was used")
            for key, tensor in found.items():
                stacked[key][index] = tensor
        return stacked


def _bytes(tensors: dict[str, Tensor]) -> bytes:
    return b"".join(name.encode() + b"\0" + tensors[name].numpy().tobytes() for name in sorted(tensors))


def _metadata(content: bytes) -> dict[str, Any]:
    """The metadata of a valid safetensors file, whose header is JSON after its length in 8 bytes."""
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    return header.get("__metadata__") or {}


def _on_disk(shape: tuple[int, ...], scratch: Path) -> Tensor:
    import torch

    with tempfile.NamedTemporaryFile(dir=scratch) as file:
        return torch.from_file(file.name, shared=True, size=math.prod(shape), dtype=torch.float32).view(shape)
