"""Files in folders that others can write to: only regular files of a limited size are read."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
from pathlib import Path
from typing import Any

import fsspec
from fsspec.implementations.local import LocalFileSystem


def read_file(fs: fsspec.AbstractFileSystem, path: str, max_bytes: int) -> bytes | None:
    """The content of a regular file; None for a larger one, and for a link, a folder or a pipe.

    Raises:
        FileNotFoundError: nothing exists at `path`.
        OSError: the storage failed.
    """
    if not isinstance(fs, LocalFileSystem):
        info: Any = fs.info(path)
        content: Any = fs.cat_file(path) if info["type"] == "file" and info["size"] <= max_bytes else None
        return content
    if not stat.S_ISREG(os.lstat(path).st_mode):
        return None
    # Without blocking: the file may have become a pipe without a writer.
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    with open(descriptor, "rb") as file:  # noqa: PTH123 - a descriptor
        content = file.read(max_bytes + 1) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None
    return content if content is None or len(content) <= max_bytes else None


def discard(fs: fsspec.AbstractFileSystem, path: str) -> None:
    """Delete what is at `path`, whatever it is. Links are deleted, not followed."""
    with contextlib.suppress(FileNotFoundError):  # another job may have deleted it
        if not isinstance(fs, LocalFileSystem):
            fs.rm_file(path)
        elif stat.S_ISDIR(os.lstat(path).st_mode):
            shutil.rmtree(path)
        else:
            Path(path).unlink()
