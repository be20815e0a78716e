"""Opens ZIP archives of images. Nothing is extracted to a disk, so names of entries are never paths on this machine.

Sizes and number of the images are checked as for a folder, from the directory of the archive. An entry that
decompresses to more than its declared size fails in `zipfile`, so an archive cannot use more memory than a folder.
"""

from __future__ import annotations

import io
import zipfile
from typing import IO, Any, cast

from fsspec.implementations.zip import ZipFileSystem

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import concept_of, is_candidate, is_visible
from dreambooth_trainer.images import selection
from dreambooth_trainer.images.selection import FIELD

SUFFIX = ".zip"
MAX_DIRECTORY_BYTES = 4 * 2**20
"""Maximum size of an archive's directory, which `zipfile` reads at once: about 50,000 entries."""
_END, _END_BYTES, _ZIP64_LOCATOR = b"PK\x05\x06", 22, b"PK\x06\x07"
_MAX_COMMENT_BYTES = 65_535
_ENCRYPTED = 0x1
_METHODS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)
"""Others decompress a block of any size at once."""


def open_archive(uri: str, file: IO[bytes]) -> tuple[Any, str]:
    """A file system of an archive, and the folder in it that has the images: the only one, if there is only one.

    Raises:
        UserError: not an archive that can be read, too large, or with a password.
    """
    _check_directory(uri, file)
    try:
        fs: Any = cast("Any", ZipFileSystem)(fo=file)
    except (zipfile.BadZipFile, NotImplementedError, UnicodeDecodeError, RecursionError) as error:
        raise _invalid(uri, f"is a damaged ZIP archive ({error})", "create it again") from error
    for entry in fs.zip.infolist():
        if entry.flag_bits & _ENCRYPTED:
            raise _invalid(uri, "is a ZIP archive with a password", "create it again without a password")
        if entry.compress_type not in _METHODS:
            raise _invalid(uri, "is not compressed with Deflate", "create it again with the default compression")
    _normalize_names(fs.zip)
    root = ""
    while True:
        entries = [e for e in fs.ls(root, detail=True) if is_visible(e["name"].rstrip("/").rpartition("/")[2])]
        folders = [e["name"].rstrip("/") for e in entries if e["type"] == "directory"]
        files = [e for e in entries if e["type"] == "file" and is_candidate(e["name"])]
        if files or len(folders) != 1 or concept_of(folders[0].rpartition("/")[2]):
            return fs, root
        root = folders[0]


def _normalize_names(file: zipfile.ZipFile) -> None:
    """Let names that begin with `./` be found as those without it, and forget an entry for the root itself."""
    for entry in file.filelist:
        while entry.filename.startswith("./"):
            entry.filename = entry.filename.removeprefix("./")
    file.filelist = [entry for entry in file.filelist if entry.filename]
    file.NameToInfo = {entry.filename: entry for entry in file.filelist}


def _check_directory(uri: str, file: IO[bytes]) -> None:
    """Check the size of the archive and of its directory before `zipfile` reads that."""
    size = file.seek(0, io.SEEK_END)
    if size > selection.MAX_TOTAL_BYTES:
        limit = selection.MAX_TOTAL_BYTES // 2**30
        rule = f"has {size / 2**30:.1f} GiB, the maximum is {limit} GiB"
        raise _invalid(uri, rule, "use an archive with the 3-5 best images")
    file.seek(max(0, size - _END_BYTES - _MAX_COMMENT_BYTES))
    tail = file.read()
    end = tail.rfind(_END)
    if end < 0 or len(tail) - end < _END_BYTES:
        raise _invalid(uri, "is not a ZIP archive", "use a ZIP archive, or a folder")
    directory = int.from_bytes(tail[end + 12 : end + 16], "little")
    has_zip64 = tail[max(0, end - 20) : end].startswith(_ZIP64_LOCATOR)
    if directory > MAX_DIRECTORY_BYTES or has_zip64:
        rule = f"is a ZIP64 archive, or its directory has more than {MAX_DIRECTORY_BYTES // 2**20} MiB"
        raise _invalid(uri, rule, "create an archive with the images only")
    file.seek(0)


def _invalid(uri: str, rule: str, remedy: str) -> UserError:
    return UserError(ValidationIssue(FIELD, uri, rule, remedy))
