"""Reads image files from a folder or ZIP archive, local or in an object store, or from the built-in subjects."""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
import zlib
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, cast

import fsspec  # pyright: ignore[reportMissingTypeStubs]
from PIL import Image

from dreambooth_api.environment import IMAGES_PATH
from dreambooth_api.errors import TransientError, UserError, ValidationIssue
from dreambooth_api.subject import ImageSource
from dreambooth_api.uris import BUILTIN, BUILTIN_SPRITES, BUILTIN_SUBJECT, EXTRAS, is_url
from dreambooth_trainer.images import archive, selection
from dreambooth_trainer.images.captions import merge_captions
from dreambooth_trainer.images.download import download, without_query
from dreambooth_trainer.images.selection import FIELD, Entry, Selection, list_entries, select

SCHEMES = ("file", "https", *EXTRAS, "memory")


@dataclass(frozen=True)
class RawImage:
    """A file that is expected to be an image.

    Attributes:
        name: relative to the folder of images.
        weight: how often training uses the image, relative to the others of its subject.
    """

    name: str
    data: bytes
    weight: int = 1


class RawImages(NamedTuple):
    """Files in the order of their names, and warnings about files that were skipped.

    Attributes:
        captions: by name of the image.
        origins: where captions are from, if not from the text file beside the image, by name of the image.
    """

    images: list[RawImage]
    warnings: list[str]
    captions: Mapping[str, str] = MappingProxyType({})
    origins: Mapping[str, str] = MappingProxyType({})


def read_images(source: ImageSource, mounted: Path | None = None, *, captions: bool = True) -> RawImages:
    """Read the files of a job's `subject.images`.

    Args:
        mounted: mount path of the volume, ConfigMap or Secret; None in a local run.
        captions: whether to read captions.

    Raises:
        UserError: the folder cannot be read, is empty, or is too large.
        TransientError: the object store failed.
    """
    if source.uri is not None:
        return read_folder(source.uri, captions=captions)
    if mounted is None:
        kind = "pvc" if source.pvc else "configMap" if source.config_map else "secret"
        rule = "is a Kubernetes object, which a local run cannot read"
        raise UserError(ValidationIssue(f"spec.subject.images.{kind}", None, rule, "set uri to a local folder"))
    return read_folder(str(mounted / source.pvc.path if source.pvc else mounted))


def read_folder(uri: str, *, captions: bool = True) -> RawImages:
    """Read all images and captions of a folder or a ZIP archive.

    Subfolders, hidden files and other sidecars are not read. The folders of kohya's sd-scripts (`10_sks dog`) are read
    as one folder.
    """
    if uri.startswith(BUILTIN):
        return RawImages(_read_examples(uri), [])
    scheme = uri.partition("://")[0] if is_url(uri) else "file"
    if scheme not in SCHEMES:
        stores = ", ".join(f"{store}://" for store in EXTRAS)
        remedy = f"use a local folder, {stores}, an https:// archive or {BUILTIN_SUBJECT}"
        raise UserError(ValidationIssue(FIELD, uri, f"{scheme}:// is not supported", remedy))
    with contextlib.ExitStack() as stack:
        shown = without_query(uri) if scheme == "https" else uri
        with _convert_errors(shown, scheme):
            if scheme == "https":
                file = stack.enter_context(download(uri, selection.MAX_TOTAL_BYTES))
                fs, root = archive.open_archive(shown, file)
            else:
                fs, root = _open_folder(uri, scheme, stack)
            entries, concepts = list_entries(fs, root)
        selected = select(shown, entries, concepts)
        return _read_entries(shown, scheme, fs, selected, captions=captions)


def _open_folder(uri: str, scheme: str, stack: contextlib.ExitStack) -> tuple[Any, str]:
    """A file system, and the folder in it that has the images."""
    # fsspec has no type annotations.
    fs = cast("Any", fsspec).filesystem(scheme)
    root = fs._strip_protocol(uri)
    _check_mounted(uri, root)
    if not fs.isfile(root):
        return fs, root
    if not root.lower().endswith(archive.SUFFIX):
        raise NotADirectoryError(root)
    return archive.open_archive(uri, stack.enter_context(fs.open(root, "rb")))


def _read_entries(uri: str, scheme: str, fs: Any, selected: Selection, *, captions: bool) -> RawImages:
    with _convert_errors(uri, scheme):
        images = [RawImage(entry.name, _read(fs, entry), selected.weight(entry.name)) for entry in selected.images]
        if not captions:
            return RawImages(images, [])
        files = {name: (entry.name, _read(fs, entry)) for name, entry in selected.captions.items()}
        metadata = {entry.name: _read(fs, entry) for entry in selected.metadata}
    texts, origins, warnings = merge_captions([image.name for image in images], files, metadata, selected.concepts)
    return RawImages(images, [*selected.warnings, *warnings], texts, origins)


def _check_mounted(uri: str, root: str) -> None:
    """Check that a folder on a mounted volume is not a link to another one, for example of another team.

    Raises:
        UserError: it is, or is below one.
    """
    if root.startswith(f"{IMAGES_PATH}/") and (target := str(Path(root).resolve())) != root:
        rule, remedy = f"is a link to {target}", "use the folder itself, without links in its path"
        raise UserError(ValidationIssue(FIELD, uri, rule, remedy))


def _read(fs: Any, entry: Entry) -> bytes:
    try:
        with fs.open(entry.path, "rb") as file:
            data = bytes(file.read(selection.MAX_FILE_BYTES + 1))
    except (zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
        rule = f"cannot be read from the ZIP archive ({error})"
        raise UserError(ValidationIssue(entry.name, None, rule, "create the archive again")) from error
    if len(data) > selection.MAX_FILE_BYTES:
        rule = f"grew to more than {selection.MAX_FILE_BYTES // 2**20} MiB while it was read"
        raise UserError(ValidationIssue(entry.name, None, rule, "reduce its size"))
    return data


@contextmanager
def _convert_errors(uri: str, scheme: str) -> Generator[None]:
    """Convert errors of calls of a file system to a `UserError`, or to a `TransientError` if a retry may succeed."""
    try:
        yield
    except FileNotFoundError as error:
        remedy = "correct the path, which is relative to the job file"
        raise UserError(ValidationIssue(FIELD, uri, "does not exist", remedy)) from error
    except NotADirectoryError as error:
        raise UserError(
            ValidationIssue(FIELD, uri, "is a file", "use the folder that contains it, or a ZIP archive")
        ) from error
    except PermissionError as error:
        rule = "permission denied" + (f" ({error.filename})" if error.filename else "")
        raise UserError(ValidationIssue(FIELD, uri, rule, "check the permissions or credentials")) from error
    except ImportError as error:
        rule = f"{scheme}:// requires a package that is not installed"
        remedy = f"pip install 'dreambooth-operator[{EXTRAS.get(scheme, 'trainer')}]'"
        raise UserError(ValidationIssue(FIELD, uri, rule, remedy)) from error
    except OSError as error:
        raise TransientError(f"{uri} could not be read: {error}") from error
    except UserError:
        raise
    except Exception as error:
        # Only calls of a file system are wrapped, so this is an error of the client library of an object store.
        if scheme not in EXTRAS:
            raise
        if "Credential" in type(error).__name__ or re.search(r"\b(401|403)\b", str(error)):
            raise UserError(ValidationIssue(FIELD, uri, f"access denied: {error}", "check the credentials")) from error
        raise TransientError(f"{uri} could not be read: {error}") from error


def _read_examples(uri: str) -> list[RawImage]:
    """Render the images of a built-in subject as PNG files."""
    # Imported here, because most jobs do not use built-in subjects.
    from dreambooth_trainer.sprites.examples import EXAMPLES, example_images

    name = uri.removeprefix(f"{BUILTIN_SPRITES}/")
    if name not in EXAMPLES:
        close = get_close_matches(name, EXAMPLES, n=1)
        remedy = f"did you mean {BUILTIN_SPRITES}/{close[0]}?" if close else f"use one of {', '.join(EXAMPLES)}"
        raise UserError(ValidationIssue(FIELD, uri, "is not a built-in subject", remedy))
    raws: list[RawImage] = []
    for index, pixels in enumerate(example_images(name)):
        file = io.BytesIO()
        Image.fromarray(pixels).save(file, "PNG")
        raws.append(RawImage(f"{index}.png", file.getvalue()))
    return raws
