"""A `CLIPTokenizer` in which each word of the captions is one token. Other words are split into characters."""

import string
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from transformers import CLIPTokenizer

from dreambooth_trainer.sprites.captions import WORDS

CONTEXT = 16
"""Tokens per prompt, including the start and end tokens."""
END_OF_WORD = "</w>"
CHARACTERS = string.ascii_lowercase + string.digits + ".,'!?-:;()\"&"


def build_tokenizer() -> CLIPTokenizer:
    """Build a tokenizer in which each of `WORDS` is one token."""
    merges = _merges(WORDS)
    tokens = [*CHARACTERS, *(character + END_OF_WORD for character in CHARACTERS)]
    tokens += [first + second for first, second in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    # `merges` is annotated as lines of text, but the underlying tokenizer takes pairs.
    return CLIPTokenizer(vocab=vocabulary, merges=cast("Any", merges), model_max_length=CONTEXT)


def encode(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 [captions, 16], padded with the end token as Stable Diffusion does."""
    encoded: Any = tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that make each word one token, by decreasing priority.

    New merges have a lower priority than earlier ones, so words that are one token already are not affected.
    (`BpeTrainer` breaks ties by hash order, so the token IDs of a resumed run could differ.)
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: join the adjacent pair with the lowest rank until no known pair is left."""
    pieces = [*word[:-1], word[-1] + END_OF_WORD]
    while known := [pair for pair in pairwise(pieces) if pair in ranks]:
        best = min(known, key=ranks.__getitem__)
        joined: list[str] = []
        for piece in pieces:
            if joined and (joined[-1], piece) == best:
                joined[-1] += piece
            else:
                joined.append(piece)
        pieces = joined
    return pieces
