"""What a file is, by its first bytes; its name is not asked."""

from __future__ import annotations

from typing import Literal

Kind = Literal["JPEG", "PNG", "WebP", "AVIF", "GIF", "BMP", "TIFF"]

READABLE = "JPEG, PNG, WebP, AVIF, TIFF, BMP or GIF"

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
    (b"version https://git-lfs", "a Git LFS pointer; run git lfs pull to get the image itself"),
]
_HEIC = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx"}


def image_kind(data: bytes) -> Kind | None:
    """The image format that can be decoded here, or None."""
    for magic, kind in _KINDS:
        if data.startswith(magic):
            return kind
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WebP"
    return "AVIF" if _brands(data) & {b"avif", b"avis"} else None


def what_else(data: bytes) -> str:
    """Words for a file that is no image of a readable kind: "a PDF document", "text"."""
    if not data:
        return "empty (0 bytes)"
    for magic, words in _OTHERS:
        if data.startswith(magic):
            return words
    brands = _brands(data)
    if brands:
        return "a HEIC photo" if brands & (_HEIC | {b"mif1"}) else "a video (MP4 or QuickTime)"
    head = data[:4096].lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    if b"<svg" in head and head.startswith(b"<"):
        return "an SVG drawing"
    if head.startswith((b"<!doctype html", b"<html")):
        return "a web page"
    return "text" if _is_text(data[:4096]) else "no image that can be read here"


def _brands(data: bytes) -> set[bytes]:
    """Brands of an ISO base media file (HEIC, AVIF, MP4); empty for anything else."""
    if data[4:8] != b"ftyp":
        return set()
    end = min(int.from_bytes(data[:4]), len(data), 256)
    return {data[8:12], *(data[at : at + 4] for at in range(16, end - 3, 4))}


def _is_text(head: bytes) -> bool:
    # A character may be cut at the end of the head.
    text = head.decode("utf-8", errors="replace").rstrip("\ufffd")
    return "\ufffd" not in text and all(c.isprintable() or c.isspace() for c in text)
