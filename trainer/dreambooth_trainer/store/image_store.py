"""Folders of numbered pictures on any fsspec file system; a picture that is there is never drawn again."""

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
    """One folder of PNG files, by URL. Small enough to travel to every worker."""

    url: str

    def _open(self) -> tuple[fsspec.AbstractFileSystem, str]:
        fs, path = fsspec.url_to_fs(self.url)
        return fs, path

    def names(self) -> set[str]:
        """Names, without .png, of the pictures that are there."""
        fs, path = self._open()
        fs.invalidate_cache()
        found = fs.ls(path, detail=False) if fs.exists(path) else []
        return {p.rsplit("/", 1)[-1].removesuffix(".png") for p in found if p.endswith(".png")}

    def put(self, name: str, image: Image.Image) -> None:
        """Store a picture so that it is seen whole or not at all."""
        buffer = io.BytesIO()
        image.save(buffer, "PNG")
        fs, path = self._open()
        if isinstance(fs, LocalFileSystem):
            # Its transactions write below /tmp and move: onto another disk that is a copy, which may break off halfway.
            atomic_write(Path(path) / f"{name}.png", buffer.getvalue())
        else:
            fs.pipe_file(f"{path}/{name}.png", buffer.getvalue())

    def get(self, name: str) -> Image.Image:
        """A picture, RGB."""
        fs, path = self._open()
        content: Any = fs.cat_file(f"{path}/{name}.png")
        return Image.open(io.BytesIO(content)).convert("RGB")
