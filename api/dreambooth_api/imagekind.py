"""Detects the format of a file from its first bytes, regardless of its name."""

from __future__ import annotations

import re
from typing import Literal

Kind = Literal["JPEG", "PNG", "WebP", "AVIF", "HEIC", "GIF", "BMP", "TIFF"]

READABLE = "JPEG, PNG, WebP, AVIF, HEIC, TIFF, BMP or GIF"

HEIC_NEEDS = (
    "is a HEIC photo, which requires the package pillow-heif",
    "pip install 'dreambooth-operator[heif]', or export the photo as JPEG",
)
"""Rule and remedy where the package is not installed."""

_KINDS: list[tuple[bytes, Kind]] = [
    (b"\xff\xd8\xff", "JPEG"),
    (b"\x89PNG\r\n\x1a\n", "PNG"),
    (b"GIF87a", "GIF"),
    (b"GIF89a", "GIF"),
    (b"BM", "BMP"),
    (b"II*\x00", "TIFF"),
    (b"MM\x00*", "TIFF"),
]
_OTHERS: list[tuple[bytes, str]] = [
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop file"),
    (b"PK\x03\x04", "a ZIP archive or an office document"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"\x00\x00\x00\x0cjP  ", "a JPEG 2000 image"),
    (b"\xff\x4f\xff\x51", "a JPEG 2000 image"),
    (b"\x00\x00\x00\x0cJXL ", "a JPEG XL image"),
    (b"\xff\x0a", "a JPEG XL image"),
    (b"\x1a\x45\xdf\xa3", "a video (Matroska or WebM)"),
    (b"II+\x00", "a BigTIFF image"),
    (b"MM\x00+", "a BigTIFF image"),
    (b"version https://git-lfs", "a Git LFS pointer (run git lfs pull to download the image)"),
]
# Where symbolic links are not supported, Git and archives write their targets as text without a newline.
_LINK = re.compile(r"\.{0,2}/\S.*|[^\s/]+(?:/[^\s/]+)*\.(?:jpe?g|png|webp|avif|tiff?|bmp|gif|heic)", re.IGNORECASE)
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}


def image_kind(data: bytes) -> Kind | None:
    """The format of a supported image, or None."""
    for magic, kind in _KINDS:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    brands = _brands(data)
    if brands & {b"avif", b"avis"}:
        return "AVIF"
    return "HEIC" if brands & _HEIC else None


def describe_content(data: bytes) -> str:
    """Description of a file that is not a supported image, for error messages: "a PDF document", "text"."""
    if not data:
        return "empty (0 bytes)"
    for magic, description in _OTHERS:
        if data.startswith(magic):
            return description
    brands = _brands(data)
    if brands:
        return "a HEIF image without a HEIC or AVIF image" if b"mif1" in brands else "a video (MP4 or QuickTime)"
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head and head.startswith(b"<"):
        return "an SVG image"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    if not _is_text(data[:4096]):
        return "an unknown format"
    text = data[:4096].decode("utf-8", errors="replace")
    return _describe_link(text) if "annex/objects/" in text or _LINK.fullmatch(text) else "text"


def _describe_link(target: str) -> str:
    if "annex/objects/" in target:
        return "a link of git-annex saved as text (run git annex get or datalad get to download the image)"
    return (
        f"a symbolic link to {target!r} saved as text (copy that file here, or check out the repository again after "
        "git config core.symlinks true)"
    )


def _brands(data: bytes) -> set[bytes]:
    """Brands of an ISO base media file (HEIC, AVIF, MP4); empty for anything else."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4]), len(data), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def _is_text(head: bytes) -> bool:
    # The last character may be truncated.
    text = head.decode("utf-8", errors="replace").rstrip("\ufffd")
    return "\ufffd" not in text and all(c.isprintable() or c.isspace() for c in text)
