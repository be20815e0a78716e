"""Matches captions to images by file name."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping


def caption_for(name: str, captions: Mapping[str, str]) -> str | None:
    """The caption of an image; None if it has none.

    macOS stores an accent in a file name as a separate character (NFD), while keyboards produce one character (NFC).
    """
    if name in captions:
        return captions[name]
    key = unicodedata.normalize("NFC", name)
    return next((text for other, text in captions.items() if unicodedata.normalize("NFC", other) == key), None)
