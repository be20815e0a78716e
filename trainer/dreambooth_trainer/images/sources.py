"""Files of a folder, wherever it is: a local disk, s3://, gs://, or the examples that ship with the package."""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.subject import ImageSource
from dreambooth_api.uris import BUILTIN, BUILTIN_SPRITES, EXTRAS, is_url

MAX_FILE_BYTES = 64 * 2**20
MAX_ALL_BYTES = 2 * 2**30
MAX_FILES = 1000
SIDECARS = {".txt", ".json", ".jsonl", ".csv", ".md", ".yaml", ".yml", ".xmp", ".aae", ".ini", ".db"}
"""What galleries, cameras and captioning tools leave beside images."""
SCHEMES = ("file", *EXTRAS, "memory")
_WHERE = "spec.subject.images.uri"


@dataclass(frozen=True)
class RawImage:
    """A file that should be an image, as it is."""

    name: str
    data: bytes


class Found(NamedTuple):
    """Files in order of name, and what was passed over, in sentences."""

    images: list[RawImage]
    warnings: list[str]


def read_images(source: ImageSource, mounted: Path | None = None) -> Found:
    """The files that a job's `subject.images` stands for.

    Args:
        mounted: where the operator mounted the volume, ConfigMap or Secret; None in a local run.

    Raises:
        UserError: the folder cannot be read, is empty, or is too large.
        TransientError: the store did not answer.
    """
    if source.uri is not None:
        return read_folder(source.uri)
    if mounted is None:
        kind = "pvc" if source.pvc else "configMap" if source.config_map else "secret"
        rule = "is on a cluster, which a local run does not have"
        raise UserError(ValidationIssue(f"spec.subject.images.{kind}", None, rule, "write uri: and a local folder"))
    return read_folder(str(mounted / source.pvc.path if source.pvc else mounted))


def read_folder(uri: str) -> Found:
    """All files of a folder, without its subfolders, hidden files and sidecars."""
    if uri.startswith(BUILTIN):
        return Found(_examples(uri), [])
    scheme = uri.partition("://")[0] if is_url(uri) else "file"
    if scheme not in SCHEMES:
        remedy = "write a local folder, s3://, gs:// or builtin:sprites/<name>"
        raise UserError(ValidationIssue(_WHERE, uri, f"{scheme}:// is not read here", remedy))
    with _told(uri, scheme):
        # fsspec has no types; what is used of it: ls, isfile, open.
        fs = cast("Any", fsspec).filesystem(scheme)
        root = fs._strip_protocol(uri)
        if fs.isfile(root):
            raise UserError(ValidationIssue(_WHERE, uri, "is a file", "give the folder that it is in"))
        entries = [_Entry.of(fs, one) for one in fs.ls(root, detail=True)]
        wanted, warnings = _chosen(uri, entries)
        return Found([RawImage(entry.name, _read(fs, entry)) for entry in wanted], warnings)


class _Entry(NamedTuple):
    path: str
    name: str
    is_file: bool
    size: int

    @classmethod
    def of(cls, fs: Any, info: dict[str, Any]) -> _Entry:
        path = str(info["name"])
        # Keys of a mounted ConfigMap or Secret are links, which fsspec calls "link" or "other".
        is_file = info["type"] == "file" or (info["type"] != "directory" and bool(fs.isfile(path)))
        return cls(path, PurePosixPath(path).name, is_file, int(info.get("size") or 0))


def _chosen(uri: str, entries: Sequence[_Entry]) -> tuple[list[_Entry], list[str]]:
    """Which files to read, decided before any is."""
    visible = sorted((e for e in entries if not e.name.startswith(".") and e.name), key=lambda e: e.name)
    folders = [e.name for e in visible if not e.is_file]
    files = [e for e in visible if e.is_file and PurePosixPath(e.name).suffix.lower() not in SIDECARS]
    sidecars = [e.name for e in visible if e.is_file and e not in files]
    warnings = [
        f"{_listed(names)} in {uri}: {why}"
        for names, why in (
            (folders, "folders inside the folder are not searched"),
            (sidecars, "not read as images"),
        )
        if names
    ]
    if not files:
        beside = f", only {_listed(folders + sidecars)}" if folders or sidecars else ""
        remedy = (
            "put 3-5 pictures of the subject there" if not folders else f"give one of its folders: {uri}/{folders[0]}"
        )
        raise UserError(ValidationIssue(_WHERE, uri, f"holds no images{beside}", remedy))
    if len(files) > MAX_FILES:
        rule = f"holds {len(files):,} files; at most {MAX_FILES:,} are read"
        raise UserError(ValidationIssue(_WHERE, uri, rule, "give a folder with the 3-5 best pictures"))
    issues = [
        ValidationIssue(
            e.name,
            None,
            f"has {e.size / 2**20:,.0f} MiB; at most {MAX_FILE_BYTES // 2**20} are read",
            "save it smaller",
        )
        for e in files
        if e.size > MAX_FILE_BYTES
    ]
    total = sum(e.size for e in files)
    if not issues and total > MAX_ALL_BYTES:
        rule = f"holds {total / 2**30:.1f} GiB; at most {MAX_ALL_BYTES // 2**30} are read"
        issues = [ValidationIssue(_WHERE, uri, rule, "give a folder with the 3-5 best pictures")]
    if issues:
        raise UserError(issues)
    return files, warnings


def _read(fs: Any, entry: _Entry) -> bytes:
    with fs.open(entry.path, "rb") as file:
        data = bytes(file.read(MAX_FILE_BYTES + 1))
    if len(data) > MAX_FILE_BYTES:
        rule = f"grew over {MAX_FILE_BYTES // 2**20} MiB while it was read"
        raise UserError(ValidationIssue(entry.name, None, rule, "save it smaller"))
    return data


@contextmanager
def _told(uri: str, scheme: str) -> Generator[None]:
    """Whose fault an error of a store is: the user's, or the world's."""
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            ValidationIssue(_WHERE, uri, "does not exist", "correct the path; it is relative to the job file")
        ) from error
    except NotADirectoryError as error:
        raise UserError(ValidationIssue(_WHERE, uri, "is a file", "give the folder that it is in")) from error
    except PermissionError as error:
        file = f" ({error.filename})" if error.filename else ""
        raise UserError(
            ValidationIssue(_WHERE, uri, f"may not be read{file}", "check its permissions or credentials")
        ) from error
    except ImportError as error:
        remedy = f"pip install 'dreambooth-operator[{EXTRAS.get(scheme, 'trainer')}]'"
        raise UserError(
            ValidationIssue(_WHERE, uri, f"{scheme}:// needs a package that is not installed", remedy)
        ) from error
    except OSError as error:
        raise TransientError(f"{uri} could not be read: {error}") from error
    except Exception as error:
        library = type(error).__module__.partition(".")[0]
        if library not in ("botocore", "aiobotocore", "aiohttp", "gcsfs", "google", "s3fs"):
            raise
        if "Credential" in type(error).__name__ or re.search(r"\b(401|403)\b", str(error)):
            raise UserError(
                ValidationIssue(_WHERE, uri, f"is not open to us: {error}", "check the credentials")
            ) from error
        raise TransientError(f"{uri} could not be read: {error}") from error


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _examples(uri: str) -> list[RawImage]:
    """The pictures of a drawn subject that ships with the package, as PNG files."""
    # Imported here, because most jobs draw nothing.
    from dreambooth_trainer.sprites.examples import EXAMPLES, example_images

    name = uri.removeprefix(f"{BUILTIN_SPRITES}/")
    if name not in EXAMPLES:
        close = get_close_matches(name, EXAMPLES, n=1)
        remedy = f"did you mean builtin:sprites/{close[0]}?" if close else f"write one of {', '.join(EXAMPLES)}"
        raise UserError(ValidationIssue(_WHERE, uri, "is no built-in subject", remedy))
    raws: list[RawImage] = []
    for index, pixels in enumerate(example_images(name)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        raws.append(RawImage(f"{index}.png", file.getvalue()))
    return raws
