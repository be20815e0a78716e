"""Decodes an image file to a square RGB image.

The order of operations limits memory: the header is checked before pixels are decoded, JPEGs are decoded at a reduced
scale, the full-size image is copied at most once, and color and orientation are converted after resizing.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from typing import Any, cast

import numpy as np
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    ImageCms,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)

from dreambooth_api.errors import UserError, ValidationIssue
from dreambooth_api.imagekind import HEIC_NEEDS, READABLE, Kind, describe_content, image_kind
from dreambooth_trainer.images.png import without_metadata
from dreambooth_trainer.images.sources import RawImage

MAX_PIXELS = 80_000_000
"""Maximum pixels in memory. Measured peaks are 0.4 GB (RGB PNG) to 1.3 GB (WebP). Pillow warns above 89 million."""
MAX_JPEG_PIXELS = 400_000_000
"""Maximum pixels of a baseline JPEG, which is decoded at a scale of 1/2, 1/4 or 1/8."""
PHOTO_SIDE = 1024
"""Maximum length of the shorter side of a photo, in pixels. Encoders read about 224."""
_ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_CMS = cast("Any", ImageCms)
"""Pillow's stubs do not fully type color profiles."""
_SRGB = _CMS.createProfile("sRGB")


def _open_heic(file: io.BytesIO) -> ImageFile.ImageFile:
    """The primary image of a HEIC file. libheif turns it upright and converts it to 8 bits per channel."""
    from pillow_heif import HeifImageFile

    return HeifImageFile(file)


# Classes instead of Image.open: the format is known, and the size check of Image.open does not consider `draft`.
_OPEN: dict[Kind, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "HEIC": _open_heic,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> the operation that turns the image upright."""


def prepare_image(raw: RawImage, resolution: int) -> Image.Image:
    """The center square of an image, upright, in sRGB on white, `resolution` x `resolution` pixels.

    Raises:
        UserError: the file cannot be used; the path of the issue is the file's name.
    """
    return _prepare(raw, resolution, lambda image: _resize_center(image, resolution))


def prepare_photo(raw: RawImage, resolution: int) -> Image.Image:
    """The whole image, upright, in sRGB on white; not enlarged. It is large enough for crops of the resolution.

    Raises:
        UserError: as `prepare_image`.
    """
    return _prepare(raw, resolution, lambda image: _shrink(image, max(PHOTO_SIDE, resolution)))


def read_image(raw: RawImage) -> Image.Image:
    """The whole image of any size, as `prepare_photo` reads it for a job with 512 pixels.

    Raises:
        UserError: as `prepare_image`.
    """
    return _prepare(raw, PHOTO_SIDE // 2, lambda image: _shrink(image, PHOTO_SIDE), any_size=True)


def _prepare(
    raw: RawImage, resolution: int, resize: Callable[[Image.Image], Image.Image], *, any_size: bool = False
) -> Image.Image:
    kind = image_kind(raw.data)
    if kind is None:
        rule = f"is {describe_content(raw.data)}" + ("" if not raw.data else ", regardless of its name")
        raise _invalid(raw.name, rule, f"use a {READABLE} image, or remove the file")
    try:
        image = _open(kind, raw.data)
        _check_header(raw.name, kind, image, resolution)
        if not any_size:
            _check_size(raw.name, image, resolution)
        if kind == "JPEG":  # a draft of a HEIC photo is its thumbnail
            image.draft(None, (2 * resolution, 2 * resolution))
        image.load()
        return _convert(image, resize)
    except (UserError, MemoryError):
        raise
    except ImportError as error:
        raise _invalid(raw.name, *HEIC_NEEDS) from error
    except Exception as error:
        # Pillow's decoders raise many types: OSError, SyntaxError, struct.error, KeyError, ...
        rule = f"is a damaged or truncated {kind} image ({error})"
        raise _invalid(raw.name, rule, "copy it again, or remove the file") from error


def crop_size(raw: RawImage) -> tuple[float, int]:
    """Share of a readable image that the center square keeps (0..1), and the side length of the square in pixels."""
    kind = image_kind(raw.data)
    if kind is None:
        raise ValueError(f"{raw.name} is not an image")
    width, height = _open(kind, raw.data).size
    return min(width, height) / max(width, height), min(width, height)


def _open(kind: Kind, data: bytes) -> ImageFile.ImageFile:
    return _OPEN[kind](io.BytesIO(without_metadata(data) if kind == "PNG" else data))


def _invalid(name: str, rule: str, remedy: str) -> UserError:
    return UserError(ValidationIssue(name, None, rule, remedy))


def _check_header(name: str, kind: Kind, image: ImageFile.ImageFile, resolution: int) -> None:
    width, height = image.size
    size = f"{width:,} x {height:,} pixels"
    scaled = kind == "JPEG" and not image.info.get("progressive")
    max_pixels = MAX_JPEG_PIXELS if scaled else MAX_PIXELS
    if width * height > max_pixels or _decoded_pixels(image, scaled, resolution) > MAX_PIXELS:
        side = max(1024, 4 * resolution)
        kind_name = "progressive JPEG" if kind == "JPEG" and not scaled else kind
        rule = f"has {size}, the maximum for {kind_name} is {max_pixels // 1_000_000} million pixels"
        raise _invalid(name, rule, f"scale it down to about {side} pixels per side")
    if kind != "HEIC" and getattr(image, "is_animated", False):  # a burst of photos has a primary one
        rule = "has several pages" if kind == "TIFF" else "is an animation"
        raise _invalid(name, rule, "save a single image as PNG")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_raw(image):
        raise _invalid(name, "is a camera raw file, of which only a preview can be read", "export it as JPEG or PNG")
    if image.mode in ("I", "F", "LAB"):
        pixel_type = {"I": "32-bit integer", "F": "32-bit floating-point", "LAB": "LAB"}[image.mode]
        raise _invalid(name, f"has {pixel_type} pixels, which are not supported", "save it as 8-bit or 16-bit RGB")


def _check_size(name: str, image: ImageFile.ImageFile, resolution: int) -> None:
    width, height = image.size
    if 2 * min(width, height) < resolution:
        rule = (
            f"has {width:,} x {height:,} pixels, training at resolution {resolution} requires at least "
            f"{-(-resolution // 2)} per side"
        )
        lower = 2 * min(width, height) // 8 * 8
        alternative = f", or set training.resolution: {lower}" if lower >= 16 else ""
        raise _invalid(name, rule, f"use a larger image{alternative}")


def _decoded_pixels(image: ImageFile.ImageFile, scaled: bool, resolution: int) -> int:
    """Pixels in memory after decoding: `draft` keeps at least twice the resolution and divides by 8, 4 or 2."""
    max_divisor = min(image.size) // (2 * resolution)
    divisor = next((divisor for divisor in (8, 4, 2) if scaled and max_divisor >= divisor), 1)
    return image.width * image.height // divisor**2


def _is_raw(image: TiffImagePlugin.TiffImageFile) -> bool:
    tags = image.tag_v2
    return _DNG_VERSION in tags or bool(int(tags.get(_NEW_SUBFILE_TYPE, 0)) & 1)


def _convert(image: ImageFile.ImageFile, resize: Callable[[Image.Image], Image.Image]) -> Image.Image:
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    resized = resize(_to_resizable(image))
    if resized.mode == "RGBA":
        white = Image.new("RGBA", resized.size, "white")
        resized = Image.alpha_composite(white, resized).convert("RGB")
    resized = _to_srgb(resized, profile)
    operation = _TRANSPOSE.get(orientation)
    resized = resized.transpose(operation) if operation is not None else resized
    # A new image without the metadata of the file (EXIF, comments, GPS position).
    return Image.frombytes("RGB", resized.size, resized.tobytes())


def _orientation(image: ImageFile.ImageFile) -> int:
    """Must be called after `load`: the TIFF reader applies the orientation while loading and removes the tag."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged EXIF is common in edited photos. The image itself is usable.
        return 1


def _to_resizable(image: Image.Image) -> Image.Image:
    """Convert an image to a mode that can be resampled: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _resize_center(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def _shrink(image: Image.Image, side: int) -> Image.Image:
    """Scale an image down so that its shorter side has at most `side` pixels."""
    scale = side / min(image.size)
    if scale >= 1:
        return image
    return image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.LANCZOS)


def _to_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Convert an image to sRGB. A profile of another color space than the image is ignored, as in browsers."""
    if isinstance(profile, bytes) and profile:
        try:
            source = _CMS.ImageCmsProfile(io.BytesIO(profile))
            space = str(source.profile.xcolor_space).strip()
            matching = image.convert("RGB") if (space, image.mode) == ("RGB", "L") else image
            if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) == matching.mode:
                return cast("Image.Image", _CMS.profileToProfile(matching, source, _SRGB, outputMode="RGB"))
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")
