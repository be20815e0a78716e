"""Deletion of files below a folder, without following links below it."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from pathlib import PurePosixPath

import fsspec
from fsspec.implementations.local import LocalFileSystem

# A file or folder that does not exist, or a link or a file where a folder is expected.
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.ELOOP}


def remove_file(fs: fsspec.AbstractFileSystem, root: str, name: str) -> None:
    """Delete a file, if it exists. A link is deleted, not the file that it points to."""
    if not isinstance(fs, LocalFileSystem):
        with contextlib.suppress(FileNotFoundError):
            fs.rm_file(f"{root}/{name}")
        return
    with _ignore_missing(), _parent(root, name) as (folder, last):
        os.unlink(last, dir_fd=folder)


def remove_empty_folder(fs: fsspec.AbstractFileSystem, root: str, name: str) -> None:
    """Delete a folder, if it exists and is empty."""
    if not isinstance(fs, LocalFileSystem):
        # Object stores have no folders, and the bucket must be kept.
        if "/" in f"{root}/{name}".strip("/"):
            with contextlib.suppress(OSError, NotImplementedError):
                fs.rmdir(f"{root}/{name}".rstrip("/"))
        return
    with contextlib.suppress(OSError), _parent(root, name) as (folder, last):
        os.rmdir(last, dir_fd=folder)


def remove_local_tree(root: str, name: str) -> None:
    """Delete a folder of the local file system with its content, if it exists and is not a link."""
    with _ignore_missing(), _parent(root, name) as (folder, last):
        if not os.path.islink(os.path.join(root, name)):  # noqa: PTH114, PTH118 - rmtree checks again, by descriptor
            shutil.rmtree(last, dir_fd=folder)


def list_files(fs: fsspec.AbstractFileSystem, root: str) -> list[str]:
    """All files and links below a folder, relative to it, sorted. Links are not followed."""
    if not isinstance(fs, LocalFileSystem):
        fs.invalidate_cache()
        return sorted(str(file)[len(root) :].lstrip("/") for file in fs.find(root))
    found: list[str] = []
    for folder, folders, files in os.walk(root):
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]  # noqa: PTH114, PTH118
        found += [os.path.relpath(os.path.join(folder, name), root) for name in (*files, *links)]  # noqa: PTH118
    return sorted(found)


@contextlib.contextmanager
def _parent(root: str, name: str) -> Iterator[tuple[int, str]]:
    """Open the folder that contains a path below `root`. No folder below `root` may be a link."""
    *folders, last = PurePosixPath(name).parts
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        for folder in folders:
            inner = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=descriptor)
            os.close(descriptor)
            descriptor = inner
        yield descriptor, last
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def _ignore_missing() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in _MISSING:
            raise
