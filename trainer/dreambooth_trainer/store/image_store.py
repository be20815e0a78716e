"""Folders of PNG images on any fsspec file system."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image

from dreambooth_trainer.store.folder import atomic_write
from dreambooth_trainer.store.lease import lease


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

    def get_or_delete(self, name: str, side: int) -> Image.Image | None:
        """Read an RGB image with this side length in pixels. Any other file is deleted, and the result is None."""
        try:
            image = self.get(name)
        except FileNotFoundError:
            return None
        except (Image.UnidentifiedImageError, Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:
            # Pillow raises an OSError without a number for a truncated file. Other errors are those of the storage.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            image = None
        if image is not None and image.size == (side, side):
            return image
        fs, path = self._open()
        with contextlib.suppress(FileNotFoundError):  # another job may have deleted it
            fs.rm_file(f"{path}/{name}.png")
        return None

    def lease(self, while_waiting: Callable[[], None]) -> AbstractContextManager[None]:
        """The right to write to a folder that jobs share, see `lease.py`."""
        fs, path = self._open()
        fs.makedirs(path, exist_ok=True)
        return lease(fs, f"{path}/lease.json", while_waiting)
