"""A `CLIPTokenizer` in which every word of the sprite world is one token; other words are spelled out."""

import string
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import torch
from transformers import CLIPTokenizer

from dreambooth_trainer.sprites.captions import WORDS

CONTEXT = 16
"""Tokens in a prompt, start and end included."""
END_OF_WORD = "</w>"
CHARACTERS = string.ascii_lowercase + string.digits + ".,'!?-:;()\"&"


def build_tokenizer() -> CLIPTokenizer:
    """Learn merges until each of `WORDS` is whole; characters are the fallback for anything else."""
    merges = _merges(WORDS)
    tokens = [*CHARACTERS, *(character + END_OF_WORD for character in CHARACTERS)]
    tokens += [first + second for first, second in merges]
    tokens += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {token: index for index, token in enumerate(dict.fromkeys(tokens))}
    # annotated for merges as lines of text; the tokenizer behind it takes pairs
    return CLIPTokenizer(vocab=vocabulary, merges=cast("Any", merges), model_max_length=CONTEXT)


def encode(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 [captions, 16], padded with the end token as Stable Diffusion does."""
    encoded: Any = tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    """Merges that make every word whole, most urgent first.

    A merge added later never comes before an earlier one, so a word that is whole stays whole. (`BpeTrainer` breaks
    ties by hash order: each process would get other ids, and a resumed run would read other words.)
    """
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        while len(pieces := _split(word, ranks)) > 1:
            ranks[pieces[0], pieces[1]] = len(ranks)
    return list(ranks)


def _split(word: str, ranks: dict[tuple[str, str], int]) -> list[str]:
    """Byte-pair encoding of one word: join the best-ranked neighbours until none is known."""
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
