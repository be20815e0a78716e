"""Reads image files from a local folder, s3://, gs:// or the built-in subjects."""

from __future__ import annotations

import io
import re
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path, PurePosixPath
from types import MappingProxyType
from typing import Any, Literal, NamedTuple, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from dreambooth_api.environment import IMAGES_PATH
from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.subject import ImageSource
from dreambooth_api.uris import BUILTIN, BUILTIN_SPRITES, BUILTIN_SUBJECT, EXTRAS, is_url
from dreambooth_trainer.images.captions import caption_file_for, decode_captions

MAX_FILE_BYTES = 64 * 2**20
MAX_TOTAL_BYTES = 2 * 2**30
MAX_FILES = 1000
NOTES = {".txt", ".csv", ".md", ".yaml", ".yml"}
"""Files that a user may expect to be read. Ignoring them is worth a warning."""
SIDECARS = {".caption", ".npz", ".json", ".jsonl", ".xmp", ".aae", ".ini", ".db"}
"""Files that cameras, galleries, operating systems and training tools write next to images."""
SCHEMES = ("file", *EXTRAS, "memory")
_FIELD = "spec.subject.images.uri"
_COPY = (
    "replace the link by a copy of the file (with DVC: dvc config cache.type copy, then dvc checkout --relink; with "
    "git-annex or DataLad: git annex unlock)"
)


@dataclass(frozen=True)
class RawImage:
    """The name and the content of a file that is expected to be an image."""

    name: str
    data: bytes


class RawImages(NamedTuple):
    """Files in the order of their names, warnings about files that were skipped, and captions by name of the image."""

    images: list[RawImage]
    warnings: list[str]
    captions: Mapping[str, str] = MappingProxyType({})


def read_images(source: ImageSource, mounted: Path | None = None) -> RawImages:
    """Read the files of a job's `subject.images`.

    Args:
        mounted: mount path of the volume, ConfigMap or Secret; None in a local run.

    Raises:
        UserError: the folder cannot be read, is empty, or is too large.
        TransientError: the object store failed.
    """
    if source.uri is not None:
        return read_folder(source.uri)
    if mounted is None:
        kind = "pvc" if source.pvc else "configMap" if source.config_map else "secret"
        rule = "is a Kubernetes object, which a local run cannot read"
        raise UserError(ValidationIssue(f"spec.subject.images.{kind}", None, rule, "set uri to a local folder"))
    return read_folder(str(mounted / source.pvc.path if source.pvc else mounted))


def read_folder(uri: str) -> RawImages:
    """Read all images and captions of a folder, without its subfolders, hidden files and other sidecars."""
    if uri.startswith(BUILTIN):
        return RawImages(_read_examples(uri), [])
    scheme = uri.partition("://")[0] if is_url(uri) else "file"
    if scheme not in SCHEMES:
        remedy = f"use a local folder, {', '.join(f'{store}://' for store in EXTRAS)} or {BUILTIN_SUBJECT}"
        raise UserError(ValidationIssue(_FIELD, uri, f"{scheme}:// is not supported", remedy))
    with _convert_errors(uri, scheme):
        # fsspec has no type annotations.
        fs = cast("Any", fsspec).filesystem(scheme)
        root = fs._strip_protocol(uri)
        _check_mounted(uri, root)
        if fs.isfile(root):
            raise NotADirectoryError(root)
        entries = [_Entry.from_info(fs, info, root) for info in fs.ls(root, detail=True)]
    selected, captions, warnings = _select(uri, entries)
    with _convert_errors(uri, scheme):
        images = [RawImage(entry.name, _read(fs, entry)) for entry in selected]
        files = {name: (entry.name, _read(fs, entry)) for name, entry in captions.items()}
    return RawImages(images, warnings, decode_captions(files))


class _Entry(NamedTuple):
    path: str
    name: str
    kind: Literal["file", "folder", "broken link", "special"]
    size: int
    outside: str = ""
    """What the entry is a link to, if that is outside of the folder. Such files are never read."""

    @classmethod
    def from_info(cls, fs: Any, info: dict[str, Any], root: str) -> _Entry:
        path = str(info["name"])
        size = int(info.get("size") or 0)
        name = PurePosixPath(path).name
        if info["type"] in ("file", "directory"):
            return cls(path, name, "file" if info["type"] == "file" else "folder", size)
        # Keys of a mounted ConfigMap or Secret are symbolic links, of type "link" or "other" in fsspec.
        if fs.isfile(path):
            target, folder = Path(path).resolve(), Path(root).resolve()
            # The target is read, so that a link that changes meanwhile is not followed.
            return cls(str(target), name, "file", size, "" if target.is_relative_to(folder) else str(target))
        if fs.isdir(path):
            return cls(path, name, "folder", size)
        return cls(path, name, "broken link" if info.get("islink") else "special", size)


def _select(uri: str, entries: Sequence[_Entry]) -> tuple[list[_Entry], dict[str, _Entry], list[str]]:
    """Select the images and, by name of the image, the caption files. Checks number and sizes before any is read."""
    visible = sorted((e for e in entries if not e.name.startswith(".") and e.name), key=lambda e: e.name)
    if broken := [e.name for e in visible if e.kind == "broken link"]:
        rule = f"contains links to files that do not exist: {_enumerate(broken)}"
        remedy = f"fetch the files (with DVC: dvc pull; with git-annex or DataLad: datalad get), and {_COPY}"
        raise UserError(ValidationIssue(_FIELD, uri, rule, remedy))
    folders = [e.name for e in visible if e.kind == "folder"]
    special = [e.name for e in visible if e.kind == "special"]
    by_suffix = {e.name: PurePosixPath(e.name).suffix.lower() for e in visible if e.kind == "file"}
    files = [e for e in visible if e.kind == "file" and by_suffix[e.name] not in NOTES | SIDECARS]
    by_name = {e.name: e for e in visible if e.kind == "file"}
    texts = {e.name: caption_file_for(e.name, list(by_name)) for e in files}
    captions = {image: by_name[name] for image, name in texts.items() if name is not None}
    notes = [name for name, suffix in by_suffix.items() if suffix in NOTES and name not in texts.values()]
    warnings = [
        f"{_enumerate(names)} in {uri}: {reason}"
        for names, reason in (
            (folders, "subfolders are ignored"),
            (notes + special, "ignored, because they are not images"),
        )
        if names
    ]
    if not files:
        names = folders + [e.name for e in visible if e.kind != "folder"]
        others = f", only {_enumerate(names)}" if names else ""
        remedy = "add 3-5 images of the subject" if not folders else f"use one of its subfolders: {uri}/{folders[0]}"
        raise UserError(ValidationIssue(_FIELD, uri, f"contains no images{others}", remedy))
    if len(files) > MAX_FILES:
        rule = f"contains {len(files):,} files, the maximum is {MAX_FILES:,}"
        raise UserError(ValidationIssue(_FIELD, uri, rule, "use a folder with the 3-5 best images"))
    issues = [
        ValidationIssue(
            e.name,
            None,
            f"has {e.size / 2**20:,.0f} MiB, the maximum is {MAX_FILE_BYTES // 2**20} MiB",
            "reduce its size",
        )
        for e in (*files, *captions.values())
        if e.size > MAX_FILE_BYTES
    ]
    issues += [
        ValidationIssue(e.name, None, f"is a link to {e.outside}, outside of the folder", _COPY)
        for e in (*files, *captions.values())
        if e.outside
    ]
    total = sum(e.size for e in files)
    if not issues and total > MAX_TOTAL_BYTES:
        rule = f"contains {total / 2**30:.1f} GiB, the maximum is {MAX_TOTAL_BYTES // 2**30} GiB"
        issues = [ValidationIssue(_FIELD, uri, rule, "use a folder with the 3-5 best images")]
    if issues:
        raise UserError(issues)
    return files, captions, warnings


def _check_mounted(uri: str, root: str) -> None:
    """Check that a folder on a mounted volume is not a link to another one, for example of another team.

    Raises:
        UserError: it is, or is below one.
    """
    if root.startswith(f"{IMAGES_PATH}/") and (target := str(Path(root).resolve())) != root:
        rule, remedy = f"is a link to {target}", "use the folder itself, without links in its path"
        raise UserError(ValidationIssue(_FIELD, uri, rule, remedy))


def _read(fs: Any, entry: _Entry) -> bytes:
    with fs.open(entry.path, "rb") as file:
        data = bytes(file.read(MAX_FILE_BYTES + 1))
    if len(data) > MAX_FILE_BYTES:
        rule = f"grew to more than {MAX_FILE_BYTES // 2**20} MiB while it was read"
        raise UserError(ValidationIssue(entry.name, None, rule, "reduce its size"))
    return data


@contextmanager
def _convert_errors(uri: str, scheme: str) -> Generator[None]:
    """Convert errors of calls of a file system to a `UserError`, or to a `TransientError` if a retry may succeed."""
    try:
        yield
    except FileNotFoundError as error:
        remedy = "correct the path, which is relative to the job file"
        raise UserError(ValidationIssue(_FIELD, uri, "does not exist", remedy)) from error
    except NotADirectoryError as error:
        raise UserError(ValidationIssue(_FIELD, uri, "is a file", "use the folder that contains it")) from error
    except PermissionError as error:
        rule = "permission denied" + (f" ({error.filename})" if error.filename else "")
        raise UserError(ValidationIssue(_FIELD, uri, rule, "check the permissions or credentials")) from error
    except ImportError as error:
        rule = f"{scheme}:// requires a package that is not installed"
        remedy = f"pip install 'dreambooth-operator[{EXTRAS.get(scheme, 'trainer')}]'"
        raise UserError(ValidationIssue(_FIELD, uri, rule, remedy)) from error
    except OSError as error:
        raise TransientError(f"{uri} could not be read: {error}") from error
    except UserError:
        raise
    except Exception as error:
        # Only calls of a file system are wrapped, so this is an error of the client library of an object store.
        if scheme not in EXTRAS:
            raise
        if "Credential" in type(error).__name__ or re.search(r"\b(401|403)\b", str(error)):
            raise UserError(ValidationIssue(_FIELD, uri, f"access denied: {error}", "check the credentials")) from error
        raise TransientError(f"{uri} could not be read: {error}") from error


def _enumerate(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _read_examples(uri: str) -> list[RawImage]:
    """Render the images of a built-in subject as PNG files."""
    # Imported here, because most jobs do not use built-in subjects.
    from dreambooth_trainer.sprites.examples import EXAMPLES, example_images

    name = uri.removeprefix(f"{BUILTIN_SPRITES}/")
    if name not in EXAMPLES:
        close = get_close_matches(name, EXAMPLES, n=1)
        remedy = f"did you mean {BUILTIN_SPRITES}/{close[0]}?" if close else f"use one of {', '.join(EXAMPLES)}"
        raise UserError(ValidationIssue(_FIELD, uri, "is not a built-in subject", remedy))
    raws: list[RawImage] = []
    for index, pixels in enumerate(example_images(name)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        raws.append(RawImage(f"{index}.png", file.getvalue()))
    return raws
