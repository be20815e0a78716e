"""Rare tokens for `identifier: auto`, from real tokenizers of each kind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from test_plan import job_of

from dreambooth_api.errors import UserError
from dreambooth_trainer.families.registry import load_tokenizer
from dreambooth_trainer.sampling.identifiers import rare_identifier, select_identifiers
from dreambooth_trainer.sprites import WEIGHTS

JOB = "default/my-dog"


def merges_of(words: Sequence[str], start: str = "", end: str = "") -> list[tuple[str, str]]:
    """Merges that join the characters of each word from left to right."""
    merges: list[tuple[str, str]] = []
    for word in words:
        first, *rest = [*([start] if start else []), *word[:-1], word[-1] + end]
        for piece in rest:
            merges.append((first, piece))
            first += piece
    return list(dict.fromkeys(merges))


def clip(words: Sequence[str], pieces: Sequence[str] = ()) -> Any:
    """A tokenizer with words, and with pieces of words that do not end them."""
    from transformers import CLIPTokenizer

    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    merges: Any = [*merges_of(pieces), *merges_of(words, end="</w>")]
    tokens = [*letters, *(letter + "</w>" for letter in letters), *("".join(merge) for merge in merges)]
    tokens = list(dict.fromkeys([*tokens, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(vocab={token: rank for rank, token in enumerate(tokens)}, merges=merges)


def byte_level(words: Sequence[str]) -> Any:
    from tokenizers.pre_tokenizers import ByteLevel
    from transformers import Qwen2Tokenizer

    merges: Any = merges_of(words, start="Ġ")
    tokens = [*sorted(ByteLevel.alphabet()), *("".join(merge) for merge in merges), "<|endoftext|>"]
    return Qwen2Tokenizer(vocab={token: rank for rank, token in enumerate(tokens)}, merges=merges)


def sentence_piece(words: Sequence[str]) -> Any:
    from transformers import T5Tokenizer

    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -9.0)]
    pieces = [(letter, -9.0) for letter in "abcdefghijklmnopqrstuvwxyz"]
    return T5Tokenizer(vocab=[*special, *pieces, *(("▁" + word, -3.0) for word in words)], extra_ids=0)


@pytest.fixture
def saved(tmp_path: Path) -> Callable[[Any], Path]:
    """Save a tokenizer as in a diffusers folder."""

    def save(tokenizer: Any) -> Path:
        tokenizer.save_pretrained(tmp_path / "tokenizer")
        (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
        return tmp_path

    return save


def test_auto_identifiers_are_single_tokens_and_deterministic() -> None:
    from transformers import CLIPTokenizer

    token = rare_identifier(WEIGHTS, JOB)
    assert token == rare_identifier(WEIGHTS, JOB)
    assert len(CLIPTokenizer.from_pretrained(WEIGHTS / "tokenizer").tokenize(token)) == 1


def test_auto_identifiers_are_not_words_of_the_prompts() -> None:
    taken: list[str] = []
    for _ in range(5):
        taken.append(rare_identifier(WEIGHTS, JOB, [f"a {word.upper()}, a dog" for word in taken]))
    assert len(set(taken)) == 5


@pytest.mark.parametrize("tokenizer", [clip, byte_level, sentence_piece])
def test_auto_identifiers_are_rare_and_no_words(tokenizer: Callable[..., Any], saved: Callable[[Any], Path]) -> None:
    """The last of the vocabulary is rare. "ewe" is a word, and "xqzt" has four letters."""
    folder = saved(tokenizer(["xqzt", "sky", "a", "the", "bcd", "dog", "xq", "fgh", "vjk", "ewe"]))
    assert rare_identifier(folder, JOB) in {"fgh", "vj", "vjk"}, "byte-level BPE also has the token vj"


def test_an_identifier_is_encoded_as_its_token(saved: Callable[[Any], Path]) -> None:
    """With the merge j + k</w> before v + jk</w>, no text is encoded as the token vjk</w>."""
    folder = saved(clip(["xq", "jk", "vjk"]))
    assert "vjk</w>" in load_tokenizer(folder).get_vocab()
    assert rare_identifier(folder, JOB, ["jk"]) == "xq"


def test_a_tokenizer_without_rare_tokens_is_reported(tiny_z_image_model: Path) -> None:
    with pytest.raises(UserError, match=r"spec\.subject\.identifier: 'auto': found no rare token"):
        rare_identifier(tiny_z_image_model, JOB)


@pytest.mark.parametrize(("words", "pieces"), [(["xq", "vjk"], ["vjkl"]), (["xq", "vjk", "avjk"], [])])
def test_an_identifier_that_becomes_a_token_is_not_a_part_of_words(
    words: list[str], pieces: list[str], saved: Callable[[Any], Path]
) -> None:
    folder = saved(clip(words, pieces))
    assert rare_identifier(folder, JOB) == "vjk"
    assert rare_identifier(folder, JOB, new_token=True) == "xq"


def test_an_identifier_that_becomes_a_token_is_new_to_all_tokenizers(saved: Callable[[Any], Path]) -> None:
    folder = saved(clip(["xq", "vjk"]))
    other = clip(["xq", "vjk"])
    other.add_tokens("vjk")
    other.save_pretrained(folder / "tokenizer_2")
    assert rare_identifier(folder, JOB) == "vjk"
    assert rare_identifier(folder, JOB, new_token=True) == "xq"


@pytest.mark.parametrize(
    "spec",
    [
        {},
        {"evaluation": {"prompts": ["a {} with a gnvjkr"]}},
        {"priorPreservation": {"classPrompt": "a gnvjkr"}, "training": {"method": "PivotalTuning"}},
        {
            "training": {
                "method": "TextualInversion",
                "validation": {"prompts": ["a {} with a gnvjkr"], "everySteps": 100},
            }
        },
    ],
    ids=["default prompts", "prompts of the job", "class prompt", "validation prompts"],
)
def test_an_identifier_that_becomes_a_token_is_not_inside_of_the_words_of_prompts(
    spec: dict[str, Any], saved: Callable[[Any], Path]
) -> None:
    """One of the paper's prompts is "a {} on a cobblestone street"."""
    words = ["xq", "str"] if not spec else ["xq", "vjk"]
    folder, subject = saved(clip(words)), {"class": "dog", "images": {"uri": "photos"}, "identifier": "auto"}
    inversion = {"training": {"method": "TextualInversion"}}
    job = job_of({"model": {"id": str(folder)}, "subject": subject, **inversion, **spec})
    assert select_identifiers(job, folder) == ("xq",)
