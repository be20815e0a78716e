"""Photos for a ConfigMap: upright, shrunk and recompressed, so that its 1 MiB holds them.

Pillow is imported inside functions: only `create` needs it, and it is in the extra `plugin`.
"""

from __future__ import annotations

import io
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagefolder import (
    CAPTION_SUFFIX,
    METADATA,
    Concept,
    caption_files,
    concept_of,
    decode_caption,
    decode_metadata,
    is_candidate,
    is_visible,
    normalized,
)
from dreambooth_api.imagekind import HEIC_NEEDS, describe_content, image_kind

if TYPE_CHECKING:
    from PIL import Image

MAX_BYTES = 2**20
"""Sum of the values of a ConfigMap, limited by the API server."""
MAX_FILE_BYTES = 64 * 2**20
MAX_FILES = 100
# Shorter sides in pixels and JPEG qualities, best first. Models are trained at 512 to 1024 pixels.
_SIDES = (1024, 768, 512)
_QUALITIES = (95, 90, 85)
# JPEG would damage images whose features are as small as its blocks, as the embedded base model's are.
_LOSSLESS_SIDE = 128
_FORMATS = ("JPEG", "PNG", "WEBP", "AVIF", "TIFF", "BMP", "GIF")
_ANIMATED = {"GIF", "WEBP", "PNG", "AVIF", "TIFF"}
_EIGHT_BITS = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "La", "RGBa"}
_INVALID_KEY = re.compile(r"[^-._a-zA-Z0-9]+")


class TooLargeError(Exception):
    """The photos do not fit into a ConfigMap.

    Attributes:
        count: number of photos.
        total: their bytes, shrunk as far as is useful.
    """

    def __init__(self, count: int, total: int) -> None:
        super().__init__(f"{count} photos have {total:,} bytes, more than {MAX_BYTES:,}")
        self.count = count
        self.total = total


@dataclass(frozen=True)
class Packed:
    """What a ConfigMap gets.

    Attributes:
        files: contents by valid key: images, and text files with captions.
        keys: keys of the images by the names of their files, in Unicode NFC.
        count: number of images.
        side: maximum length of the shorter side in pixels.
    """

    files: Mapping[str, bytes]
    keys: Mapping[str, str]
    count: int
    side: int

    @property
    def total(self) -> int:
        """Bytes of all files."""
        return sum(map(len, self.files.values()))


def pack(folder: Path, resolution: int | None = None, *, folder_captions: bool = True) -> Packed:
    """Prepare the images of a folder, and the captions beside them, at the best size and quality that fit.

    Args:
        resolution: side of the training images in pixels, if it is known. Photos are not made smaller.
        folder_captions: whether the names of kohya's folders are captions.

    Raises:
        UserError: files cannot be used; all of them at once.
        TooLargeError: they do not fit.
        ImportError: Pillow is not installed.
    """
    sides = (resolution,) if resolution else _SIDES
    try:
        images, captions = _read(folder, sides[0], folder_captions=folder_captions)
    except OSError as error:
        rule = f"cannot be read: {error.strerror or error}"
        issue = ValidationIssue(f"{error.filename or folder}", None, rule, "correct its permissions")
        raise UserError(issue) from error
    names = valid_keys([_stem(path, folder) for path in images])
    texts = {f"{names[_stem(path, folder)]}.txt": content for path, content in captions.items()}
    smallest = 0
    for side in sides:
        shrunk = [_shrink(image, side) for image in images.values()]
        for quality in _QUALITIES:
            encoded = [_encode(image, quality) for image in shrunk]
            files = {f"{name}{suffix}": data for name, (suffix, data) in zip(names.values(), encoded, strict=True)}
            keys = dict(zip((_name(path, folder) for path in images), files, strict=True))
            packed = Packed({**files, **texts}, keys, len(files), side)
            if packed.total <= MAX_BYTES:
                return packed
            smallest = packed.total
    raise TooLargeError(len(images), smallest)


def valid_keys(stems: Sequence[str]) -> dict[str, str]:
    """A key of a ConfigMap for each name without suffix: unique, without spaces and accents. Pure."""
    keys: dict[str, str] = {}
    for stem in stems:
        base = _INVALID_KEY.sub("-", stem).strip("-.")[:200] or "photo"
        key, number = base, 2
        while key.lower() in {other.lower() for other in keys.values()}:
            key, number = f"{base}-{number}", number + 1
        keys[stem] = key
    return keys


def _name(file: Path, folder: Path) -> str:
    """The name of a file relative to the folder of images, in Unicode NFC."""
    return normalized(str(file.relative_to(folder)))


def _stem(file: Path, folder: Path) -> str:
    return normalized(str(file.relative_to(folder).with_suffix("")))


def _list(folder: Path) -> tuple[list[Path], dict[str, Concept]]:
    """The visible files of a folder, or of kohya's folders in it if it has those and no images; and these folders."""
    entries = sorted(entry for entry in folder.iterdir() if is_visible(entry.name))
    files = [entry for entry in entries if entry.is_file()]
    folders = {e: found for e in entries if e.is_dir() and not e.is_symlink() and (found := concept_of(e.name))}
    if not folders or any(is_candidate(file.name) for file in files):
        return files, {}
    inner = [file for folder in folders for file in sorted(folder.iterdir()) if file.is_file()]
    concepts = {folder.name: found for folder, found in folders.items()}
    return [*files, *(file for file in inner if is_visible(file.name))], concepts


def _read(folder: Path, side: int, *, folder_captions: bool) -> tuple[dict[Path, Image.Image], dict[Path, bytes]]:
    """Upright images by path, with a shorter side of at most `side`, and captions by the path of their image."""
    if not folder.is_dir():
        rule = "is not a folder"
        remedy = "name the folder with 3-5 photos; unpack an archive, or copy it to a volume or a bucket"
        raise UserError(ValidationIssue(f"--images {folder}", None, rule, remedy))
    files, concepts = _list(folder)
    candidates = [file for file in files if is_candidate(file.name)]
    if len(candidates) > MAX_FILES:
        raise TooLargeError(len(candidates), sum(file.stat().st_size for file in candidates))
    texts = [file for file in files if file.suffix.lower() == CAPTION_SUFFIX or file.name == METADATA]
    images: dict[Path, Image.Image] = {}
    issues = [_outside(f) for f in (*candidates, *texts) if not f.resolve().is_relative_to(folder.resolve())]
    for file in candidates if not issues else ():
        if any(_stem(file, folder) == _stem(other, folder) for other in images):
            rule = "has the name of another image, apart from its suffix"
            issues.append(ValidationIssue(file.name, None, rule, "rename one of them"))
            continue
        try:
            images[file] = _shrink(_open(file, side), side)
        except UserError as error:
            issues += error.issues
    if not candidates:
        rule = "contains no images"
        issues.append(ValidationIssue(f"--images {folder}", None, rule, "add 3-5 photos of the subject"))
    if len({concept.repeats for concept in concepts.values()}) > 1:
        rule = "has folders with different repeats, which a ConfigMap does not keep"
        remedy = "rename them, for example to 1_sks dog, or copy the folder to a volume or a bucket"
        issues.append(ValidationIssue(f"--images {folder}", None, rule, remedy))
    if issues:
        raise UserError(issues)
    return images, _captions(folder, list(images), texts, concepts if folder_captions else {})


def _captions(
    folder: Path, images: Sequence[Path], texts: Sequence[Path], concepts: Mapping[str, Concept]
) -> dict[Path, bytes]:
    """The caption of each image that has one: in a text file, in metadata.jsonl, or in the name of kohya's folder."""
    files = {_name(file, folder): file for file in texts}
    listed: dict[str, str] = {}
    for name, file in files.items():
        if file.name == METADATA:
            listed |= {normalized(image): text for image, text in decode_metadata(name, file.read_bytes()).items()}
    beside = caption_files((_name(image, folder) for image in images), files)
    captions: dict[Path, bytes] = {}
    for image in images:
        name = _name(image, folder)
        concept = concepts.get(name.partition("/")[0])
        content = files[beside[name]].read_bytes() if name in beside else b""
        if content and decode_caption(beside[name], content):
            captions[image] = content
        elif text := listed.get(name) or (concept.tokens if concept else ""):
            captions[image] = text.encode()
    return captions


def _outside(file: Path) -> ValidationIssue:
    """A link that would publish a file of another folder."""
    return ValidationIssue(
        file.name,
        None,
        f"is a link to {file.resolve()}, outside of the folder",
        "replace the link by a copy of the file",
    )


def _open(file: Path, side: int) -> Image.Image:
    """Decode an image and turn it upright. A color profile is kept, other metadata are not."""
    from PIL import Image, ImageOps

    if file.stat().st_size > MAX_FILE_BYTES:
        rule = f"has more than {MAX_FILE_BYTES // 2**20} MiB"
        raise UserError(ValidationIssue(file.name, None, rule, "reduce its size"))
    try:
        with Image.open(file, formats=_formats()) as image:
            mode, animated = image.mode, image.format in _ANIMATED and getattr(image, "is_animated", False)
            if not animated and mode in _EIGHT_BITS:
                if image.format == "JPEG":
                    image.draft(None, (2 * side, 2 * side))  # decodes large files at a reduced scale
                return _to_rgb(ImageOps.exif_transpose(image))
    except Exception as error:  # decoders raise many types: OSError, SyntaxError, struct.error, DecompressionBombError
        raise UserError(ValidationIssue(file.name, None, *_unreadable(file, error))) from error
    rule = "is an animation" if animated else f"has {mode} pixels, not 8-bit color"
    raise UserError(ValidationIssue(file.name, None, rule, "save it as a single 8-bit JPEG or PNG"))


def _formats() -> tuple[str, ...]:
    """Formats of Pillow that are read, with HEIC if its package is installed."""
    if find_spec("pillow_heif") is None:
        return _FORMATS
    from pillow_heif import register_heif_opener  # pyright: ignore[reportUnknownVariableType]

    register_heif_opener()
    return (*_FORMATS, "HEIF")


def _unreadable(file: Path, error: Exception) -> tuple[str, str]:
    """Rule and remedy for a file that no decoder reads."""
    with file.open("rb") as opened:
        head = opened.read(4096)
    kind = image_kind(head)
    if kind == "HEIC" and find_spec("pillow_heif") is None:
        return HEIC_NEEDS
    if kind is None:
        return f"is {describe_content(head)}", "export it as JPEG or PNG, or remove the file"
    return f"is a damaged {kind} image ({type(error).__name__})", "export it as JPEG or PNG, or remove the file"


def _to_rgb(image: Image.Image) -> Image.Image:
    """The image on white, with the profile of its colors if that still applies."""
    from PIL import Image

    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    image.info = {"icc_profile": profile} if profile else {}
    return image


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale an image down so that its shorter side has at most `side` pixels."""
    from PIL import Image

    scale = side / min(image.size)
    if scale >= 1:
        return image
    size = (max(side, round(image.width * scale)), max(side, round(image.height * scale)))
    shrunk = image.resize(size, Image.Resampling.LANCZOS)
    shrunk.info = dict(image.info)
    return shrunk


def _encode(image: Image.Image, quality: int) -> tuple[str, bytes]:
    """Suffix and content of an image file."""
    buffer, profile = io.BytesIO(), image.info.get("icc_profile")
    if min(image.size) <= _LOSSLESS_SIDE:
        image.save(buffer, "PNG", optimize=True, icc_profile=profile)
        return ".png", buffer.getvalue()
    # Colors at full resolution: reduced ones would be learned too. Not optimized: Pillow's buffer for that is too small
    # for pixels that cannot be compressed.
    image.save(buffer, "JPEG", quality=quality, subsampling=0, icc_profile=profile)
    return ".jpg", buffer.getvalue()
