"""Folders of PNG images on any fsspec file system."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from dreambooth_trainer.store.folder import atomic_write


@dataclass(frozen=True)
class ImageStore:
    """A folder of PNG files. It has only a URL, so that it can be serialized and sent to workers."""

    url: str

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, path = fsspec.url_to_fs(self.url)
        return fs, path

    def names(self) -> set[str]:
        """Names of the existing images, without .png."""
        fs, path = self._open()
        fs.invalidate_cache()
        paths = fs.ls(path, detail=False) if fs.exists(path) else []
        return {p.rsplit("/", 1)[-1].removesuffix(".png") for p in paths if p.endswith(".png")}

    def put(self, name: str, image: Image.Image) -> None:
        """Write an image atomically."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        fs, path = self._open()
        if isinstance(fs, LocalFileSystem):
            # fsspec's local transactions move files from /tmp, which is not atomic across disks.
            atomic_write(Path(path) / f"{name}.png", buffer.getvalue())
        else:
            fs.pipe_file(f"{path}/{name}.png", buffer.getvalue())

    def get(self, name: str) -> Image.Image:
        """Read an image as RGB."""
        fs, path = self._open()
        content: Any = fs.cat_file(f"{path}/{name}.png")
        return Image.open(io.BytesIO(content)).convert("RGB")
