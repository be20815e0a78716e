"""One image file to one square RGB picture, or a fault that says why not.

The order keeps memory low: the header is judged before a pixel is decoded, JPEGs are decoded at the scale that is
needed, the full-size picture is copied at most once, and colour and orientation are settled on the small one.
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
from dreambooth_trainer.images.sniff import READABLE, Kind, image_kind, what_else
from dreambooth_trainer.images.sources import RawImage

MAX_PIXELS = 80_000_000
"""Pixels held at once; measured peaks: 0.4 GB (RGB PNG) to 1.3 GB (WebP). Pillow's own alarm rings at 89 million."""
MAX_JPEG_PIXELS = 400_000_000
"""Pixels of a baseline JPEG, which is decoded at 1/2, 1/4 or 1/8 and so never held in full."""
_ORIENTATION = 0x0112
_NEW_SUBFILE_TYPE, _DNG_VERSION = 254, 50706
_CMS = cast("Any", ImageCms)
"""Pillow's stubs leave colour profiles half typed."""
_SRGB = _CMS.createProfile("sRGB")

# The classes themselves, not Image.open: the kind is known, and Image.open's size alarm knows nothing of `draft`.
_OPEN: dict[Kind, Callable[[io.BytesIO], ImageFile.ImageFile]] = {
    "JPEG": JpegImagePlugin.JpegImageFile,
    "PNG": PngImagePlugin.PngImageFile,
    "WebP": WebPImagePlugin.WebPImageFile,
    "AVIF": AvifImagePlugin.AvifImageFile,
    "GIF": GifImagePlugin.GifImageFile,
    "BMP": BmpImagePlugin.BmpImageFile,
    "TIFF": TiffImagePlugin.TiffImageFile,
}
_TURN = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""EXIF orientation -> what undoes it."""


def prepare_image(raw: RawImage, resolution: int) -> Image.Image:
    """The centre square of an image, upright, in sRGB on white, `resolution` pixels a side.

    Raises:
        UserError: one issue, by the file's name.
    """
    kind = image_kind(raw.data)
    if kind is None:
        rule = f"is {what_else(raw.data)}" + ("" if not raw.data else ", whatever its name says")
        raise _refused(raw.name, rule, f"give a {READABLE} image, or remove the file")
    try:
        image = _OPEN[kind](io.BytesIO(raw.data))
        _judge(raw.name, kind, image, resolution)
        image.draft(None, (2 * resolution, 2 * resolution))
        image.load()
        return _finished(raw.name, image, resolution)
    except (UserError, MemoryError):
        raise
    except Exception as error:
        # Pillow's decoders raise whatever their parsers meet: OSError, SyntaxError, struct.error, KeyError, ...
        rule = f"is a damaged or cut-off {kind} image ({error})"
        raise _refused(raw.name, rule, "copy it again, or remove the file") from error


def kept_share(raw: RawImage) -> tuple[float, int]:
    """How much of a readable image the centre square keeps (0..1), and its shorter side in pixels."""
    kind = image_kind(raw.data)
    if kind is None:
        raise ValueError(f"{raw.name} is no image")
    width, height = _OPEN[kind](io.BytesIO(raw.data)).size
    return min(width, height) / max(width, height), min(width, height)


def _refused(name: str, rule: str, remedy: str) -> UserError:
    return UserError(ValidationIssue(name, None, rule, remedy))


def _judge(name: str, kind: Kind, image: ImageFile.ImageFile, resolution: int) -> None:
    """Refuse what the header alone condemns."""
    width, height = image.size
    size, shorter = f"{width:,} x {height:,} pixels", min(width, height)
    scaled = kind == "JPEG" and not image.info.get("progressive")
    if width * height > (MAX_JPEG_PIXELS if scaled else MAX_PIXELS) or _held(image, scaled, resolution) > MAX_PIXELS:
        most = (MAX_JPEG_PIXELS if scaled else MAX_PIXELS) // 1_000_000
        side = max(1024, 4 * resolution)
        kind_of = "progressive JPEG" if kind == "JPEG" and not scaled else kind
        rule = f"has {size}; at most {most} million are read of a {kind_of}"
        raise _refused(name, rule, f"scale it to about {side} pixels a side")
    if 2 * shorter < resolution:
        rule = f"has {size}; training at {resolution} needs a shorter side of at least {-(-resolution // 2)}"
        lower = 2 * shorter // 8 * 8
        instead = f", or set training.resolution: {lower}" if lower >= 16 else ""
        raise _refused(name, rule, f"give a larger picture{instead}")
    if getattr(image, "is_animated", False):
        rule = "has several pages" if kind == "TIFF" else "is an animation"
        raise _refused(name, rule, "save the picture you mean as PNG")
    if isinstance(image, TiffImagePlugin.TiffImageFile) and _is_raw(image):
        raise _refused(name, "is a camera's raw file that shows only a preview", "export it as JPEG or PNG")
    if image.mode in ("I", "F", "LAB"):
        what = {"I": "32-bit whole-number", "F": "32-bit floating-point", "LAB": "LAB"}[image.mode]
        raise _refused(name, f"has {what} pixels, whose white is not known", "save it as 8-bit or 16-bit RGB")


def _held(image: ImageFile.ImageFile, scaled: bool, resolution: int) -> int:
    """Pixels that decoding will hold: `draft` keeps twice the resolution and divides by 8, 4 or 2."""
    fits = min(image.size) // (2 * resolution)
    divisor = next((step for step in (8, 4, 2) if scaled and fits >= step), 1)
    return image.width * image.height // divisor**2


def _is_raw(image: TiffImagePlugin.TiffImageFile) -> bool:
    tags = image.tag_v2
    return _DNG_VERSION in tags or bool(int(tags.get(_NEW_SUBFILE_TYPE, 0)) & 1)


def _finished(name: str, image: ImageFile.ImageFile, resolution: int) -> Image.Image:
    orientation = _orientation(image)
    profile = image.info.get("icc_profile")
    small = _square(_plain(image), resolution)
    if small.mode == "RGBA":
        white = Image.new("RGBA", small.size, "white")
        small = Image.alpha_composite(white, small).convert("RGB")
    small = _in_srgb(small, profile)
    turn = _TURN.get(orientation)
    small = small.transpose(turn) if turn is not None else small
    # A fresh picture: what rode along in the file (EXIF, comments, place where it was taken) stays behind.
    return Image.frombytes("RGB", small.size, small.tobytes())


def _orientation(image: ImageFile.ImageFile) -> int:
    """Read after `load`: the TIFF reader turns by itself and then forgets the tag."""
    try:
        return int(image.getexif().get(_ORIENTATION, 1))
    except Exception:
        # Damaged EXIF is common in edited photos and no reason to refuse the picture.
        return 1


def _plain(image: Image.Image) -> Image.Image:
    """The image in a mode that can be resampled: L, RGB, RGBA or CMYK."""
    if image.mode.startswith("I;16"):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK"):
        return image
    return image.convert("L" if image.mode == "1" else "RGB")


def _square(image: Image.Image, side: int) -> Image.Image:
    short = min(image.size)
    left, top = (image.width - short) // 2, (image.height - short) // 2
    return image.resize((side, side), Image.Resampling.LANCZOS, box=(left, top, left + short, top + short))


def _in_srgb(image: Image.Image, profile: object) -> Image.Image:
    """Colours as a browser shows them. A profile that does not fit its picture is ignored, as browsers do."""
    if isinstance(profile, bytes) and profile:
        try:
            source = _CMS.ImageCmsProfile(io.BytesIO(profile))
            space = str(source.profile.xcolor_space).strip()
            fitting = image.convert("RGB") if (space, image.mode) == ("RGB", "L") else image
            if {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space) == fitting.mode:
                return cast("Image.Image", _CMS.profileToProfile(fitting, source, _SRGB, outputMode="RGB"))
        except (ImageCms.PyCMSError, OSError):
            pass
    return image.convert("RGB")
