"""A `CLIPTokenizer` in which every word of the sprite world is one token; other words are spelled out."""

import json
import string
from collections.abc import Sequence
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.trainers import BpeTrainer
from transformers import CLIPTokenizer

from .captions import WORDS

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
    return CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT)


def encode(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Token ids, int64 [captions, 16], padded with the end token as Stable Diffusion does."""
    encoded: Any = tokenizer(
        list(captions), padding="max_length", max_length=CONTEXT, truncation=True, return_tensors="pt"
    )
    return encoded.input_ids


def _merges(words: Sequence[str]) -> list[tuple[str, str]]:
    learner = Tokenizer(BPE(end_of_word_suffix=END_OF_WORD))
    learner.pre_tokenizer = Whitespace()  # pyright: ignore[reportAttributeAccessIssue]
    trainer = BpeTrainer(
        vocab_size=20_000,
        min_frequency=1,
        end_of_word_suffix=END_OF_WORD,
        initial_alphabet=list(CHARACTERS),
        show_progress=False,
    )
    learner.train_from_iterator(words, trainer)
    learned = json.loads(learner.to_str())["model"]["merges"]
    return [(pair[0], pair[1]) if isinstance(pair, list) else tuple(pair.split(" ")) for pair in learned]
