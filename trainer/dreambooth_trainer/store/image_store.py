"""Folders of PNG images on any fsspec file system."""

from __future__ import annotations

import io
import struct
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from dreambooth_trainer.store.folder import atomic_write
from dreambooth_trainer.store.lease import lease
from dreambooth_trainer.store.signing import is_signed, signature
from dreambooth_trainer.store.untrusted import discard, read_file

_SIGNATURE = "dreambooth-signature"
_PNG_START = b"\x89PNG\r\n\x1a\n\x00\x00\x00\rIHDR"
_OVERHEAD_BYTES = 64 * 2**10


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
        """Write an image atomically. In the folder of a trust domain it is signed."""
        buffer, info = io.BytesIO(), PngInfo()
        if mac := signature(self.url, name, image.tobytes()):
            info.add_text(_SIGNATURE, mac)
        image.save(buffer, "PNG", pnginfo=info)
        fs, path = self._open()
        if isinstance(fs, LocalFileSystem):
            # fsspec's local transactions move files from /tmp, which is not atomic across disks.
            atomic_write(Path(path) / f"{name}.png", buffer.getvalue())
        else:
            fs.pipe_file(f"{path}/{name}.png", buffer.getvalue())

    def get(self, name: str) -> Image.Image:
        """Read an image of the job's own folder as RGB."""
        fs, path = self._open()
        content: Any = fs.cat_file(f"{path}/{name}.png")
        return Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB")

    def get_or_delete(self, name: str, side: int) -> Image.Image | None:
        """Read an image that others may have written: an 8-bit RGB PNG file with this side length in pixels.

        Anything else is deleted, and so is a file without the right signature in the folder of a trust domain. Then
        the result is None.
        """
        fs, path = self._open()
        file = f"{path}/{name}.png"
        try:
            # One byte per row is for the filter; deflate adds little to what it cannot compress.
            content = read_file(fs, file, int(1.01 * (3 * side * side + side)) + _OVERHEAD_BYTES)
        except FileNotFoundError:
            return None
        image = None if content is None else _decode(content, side)
        if image is not None and is_signed(self.url, name, image.tobytes(), image.info.get(_SIGNATURE)):
            # Without the metadata of the file.
            return Image.frombytes("RGB", image.size, image.tobytes())
        discard(fs, file)
        return None

    def lease(self, while_waiting: Callable[[], int]) -> AbstractContextManager[None]:
        """The right to write to a folder that jobs share, see `lease.py`."""
        fs, path = self._open()
        fs.makedirs(path, exist_ok=True)
        return lease(fs, f"{path}/lease.json", while_waiting)


def _decode(content: bytes, side: int) -> Image.Image | None:
    """The image in a file as `put` writes it; None for anything else. The header is checked before pixels are read."""
    # Width, height, bits per channel, RGB, and the only methods of compression and filtering, not interlaced.
    if content[:29] != _PNG_START + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0):
        return None
    try:
        image = Image.open(io.BytesIO(content), formats=["PNG"])
        image.load()
    except Exception:  # Pillow's decoders raise many types for a damaged file
        return None
    return image if image.mode == "RGB" and image.size == (side, side) else None
