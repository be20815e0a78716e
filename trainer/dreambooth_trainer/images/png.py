"""Removes metadata from PNG files, because Pillow rejects intact images whose metadata is large or damaged."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

_SIGNATURE_BYTES = 8
# Chunks that are not critical but affect the pixels: transparency, orientation, color profile, animation.
_KEPT = {b"tRNS", b"eXIf", b"iCCP", b"acTL", b"fcTL", b"fdAT"}
_MAX_PROFILE_BYTES = 2**20
"""Pillow's limit for a decompressed color profile."""


def without_metadata(data: bytes) -> bytes:
    """A PNG file without text, damaged metadata, and color profiles that are too large. Pixels are unchanged."""
    return data[:_SIGNATURE_BYTES] + b"".join(_kept_chunks(data))


def _kept_chunks(data: bytes) -> Iterator[memoryview]:
    view, start = memoryview(data), _SIGNATURE_BYTES
    while start < len(data):
        # A chunk has a length, a type of four letters, content and a checksum. The rest of a truncated file is kept, so
        # that the decoder reports it.
        end = start + 12 + int.from_bytes(data[start : start + 4])
        chunk = view[start:end]
        if end > len(data) or _is_kept(bytes(chunk[4:8]), chunk):
            yield chunk
        start = end


def _is_kept(kind: bytes, chunk: memoryview) -> bool:
    critical = kind[:1].isupper()
    if critical or kind not in _KEPT:
        return critical
    if zlib.crc32(chunk[4:-4]) != int.from_bytes(chunk[-4:]):
        return False
    return kind != b"iCCP" or _profile_fits(bytes(chunk[8:-4]))


def _profile_fits(content: bytes) -> bool:
    # The content is a name, a null byte, the compression method, and the compressed profile.
    compressed = content.partition(b"\0")[2][1:]
    try:
        return len(zlib.decompressobj().decompress(compressed, _MAX_PROFILE_BYTES + 1)) <= _MAX_PROFILE_BYTES
    except zlib.error:
        return False
