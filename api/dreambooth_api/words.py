"""Words of prompts, separated as the tokenizers of text encoders separate them."""

from __future__ import annotations

import re

# Prompts contain no control characters, so one can mark where the word was. The word itself is never part of the
# pattern: it is user text.
_MARK = "\x01"
_MARKED_WORD = re.compile(rf"(?:^|[^\w{_MARK}]|_){_MARK}(?:$|[^\w{_MARK}]|_)")


_MARKED_WITH_SPACE = re.compile(rf" ?(?<![^\W_]){_MARK}(?![^\W_])")
_MARKED_PART = re.compile(rf"[^\W_]{_MARK}|{_MARK}[^\W_]")


def contains_word(text: str, word: str) -> bool:
    """Whether `text` contains `word` with no letter or digit before and after it, as in "photo of sks, a dog".

    `crd.rules` has the same rule in CEL.
    """
    return _MARKED_WORD.search(text.replace(word, _MARK)) is not None


def without_word(text: str, word: str) -> str:
    """`text` without a word that it contains, and without the space before it: "a sks dog" becomes "a dog"."""
    without = _MARKED_WITH_SPACE.sub("", text.replace(word, _MARK))
    return without.replace(_MARK, word).strip()  # parts of other words stay


def inside_word(text: str, word: str) -> bool:
    """Whether `text` contains `word` with a letter or digit before or after it, as in "photo of masks" for sks."""
    return _MARKED_PART.search(text.replace(word, _MARK)) is not None
